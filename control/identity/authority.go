// Package identity is the controller's certificate authority: the issuer in a Secret, the trust bundle in a ConfigMap,
// their rotation, the proof of who agents are, and the certificates of the pods on their nodes.
//
// Every replica signs with the issuer that it finds in the Secret; only the leader writes. A new root is published first,
// and signed under later, at a time that the leader writes down next to it, so that all replicas begin when everybody
// knows the root. It is removed when the last leaf under it has expired.
package identity

import (
	"errors"
	"fmt"
	"sync"
	"time"

	certs "conduit.io/conduit/identity"

	corev1 "k8s.io/api/core/v1"
)

// errNoIssuer: nothing can be signed now.
var errNoIssuer = errors.New("there is no issuer yet")

// authority is what one replica signs with, and the bundle. It is safe for concurrent use.
type authority struct {
	trustDomain string
	leafLife    time.Duration
	now         func() time.Time

	mu        sync.Mutex
	secret    *corev1.Secret // as last seen; nil when there is none
	bundle    *bundle        // nil before it is known
	active    *certs.Signer  // signs now; of an earlier Secret while the newest may not be used yet
	next      *certs.Signer  // of the newest usable Secret; nil when it is active
	secretErr error          // of the newest Secret
	bundleErr error          // of the newest ConfigMap
	changed   chan struct{}  // closed, and made anew, when the bundle is another one, or another signer signs
}

func newAuthority(trustDomain string, leafLife time.Duration, now func() time.Time) *authority {
	return &authority{trustDomain: trustDomain, leafLife: leafLife, now: now, changed: make(chan struct{})}
}

// setSecret takes in the Secret as it is now; nil means that it is gone. One that cannot be used changes nothing.
func (a *authority) setSecret(s *corev1.Secret) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.secret, a.secretErr = s, nil
	if s == nil {
		a.secretErr = fmt.Errorf("Secret %s: it is gone", IssuerSecret)
		return a.secretErr
	}
	signer, err := signerOf(s, a.trustDomain, a.leafLife, a.now)
	if err != nil {
		a.secretErr = err
		return err
	}
	a.next = signer
	a.advance()
	return nil
}

// setBundle takes in the ConfigMap as it is now; nil means that it is gone. One that is broken or gone, or was edited by
// hand and not taken up by the leader yet, changes nothing.
func (a *authority) setBundle(cm *corev1.ConfigMap) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bundleErr = nil
	if cm == nil {
		a.bundleErr = fmt.Errorf("ConfigMap %s: it is gone", RootsConfigMap)
		return a.bundleErr
	}
	b, edited, err := parseBundle(cm)
	if err != nil {
		a.bundleErr = err
		return err
	}
	if edited {
		return nil
	}
	old := a.bundle
	a.bundle = b
	a.advance()
	if old == nil || old.revision() != b.revision() {
		a.tell()
	}
	return nil
}

// tell has those look again who wait for news.
func (a *authority) tell() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// advance puts the newest signer in force when its root has been known for long enough.
func (a *authority) advance() {
	if a.next == nil {
		return
	}
	if from, ok := a.bundle.maySign(a.next.Root()); ok && !a.now().Before(from) {
		a.active, a.next = a.next, nil
		a.tell()
	}
}

// signer is the one that signs now.
func (a *authority) signer() (*certs.Signer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.advance()
	switch {
	case a.active != nil:
		return a.active, nil
	case a.next != nil:
		from, ok := a.bundle.maySign(a.next.Root())
		if ok {
			return nil, fmt.Errorf("the issuer's root is new, and nothing is signed under it before %s: %w", from.Format(time.RFC3339), errNoIssuer)
		}
		return nil, fmt.Errorf("the issuer's root is not in the trust bundle yet: %w", errNoIssuer)
	case a.secretErr != nil:
		return nil, fmt.Errorf("%v: %w", a.secretErr, errNoIssuer)
	}
	return nil, errNoIssuer
}

// trust is the bundle, and a channel that is closed when there is another one, or another signer signs; the bundle is nil before it is
// known.
func (a *authority) trust() (*bundle, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundle, a.changed
}

// state is a copy of everything, for those who report it.
type state struct {
	secret               *corev1.Secret
	bundle               *bundle
	active, next         *certs.Signer
	secretErr, bundleErr error
}

func (a *authority) state() state {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.advance()
	return state{a.secret, a.bundle, a.active, a.next, a.secretErr, a.bundleErr}
}
