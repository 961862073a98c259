// Package identity issues the X.509 certificates that workloads prove themselves with (SPIFFE X509-SVID): signers, a
// certificate authority in a directory that agents share, certificate requests, and the leaves of a node with their
// renewal.
package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"conduit.io/conduit/mesh"

	"golang.org/x/sys/unix"
)

const (
	certFile = "ca.crt"
	keyFile  = "ca.key"
	lockFile = ".lock"

	// maxFile bounds a file of the directory: some thousand roots.
	maxFile = 4 << 20
	// readEvery is how often the directory is read again.
	readEvery = 5 * time.Second
)

// CA is an authority in a directory; it is an Issuer. It is safe for concurrent use.
type CA struct {
	dir         string
	trustDomain string
	now         func() time.Time

	mu     sync.Mutex
	raw    [2][]byte // certFile and keyFile as they were last read
	signer *Signer   // of the last files that were good
	roots  []byte    // PEM
}

// OpenCA opens the authority in dir (ca.crt and ca.key), and makes one if the directory has none. Several processes
// may call it at once: the first makes the authority, the others find it. ca.crt may hold several roots: all of them
// are trusted, and the one that belongs to ca.key signs. now is the clock; nil means time.Now.
func OpenCA(dir, trustDomain string, now func() time.Time) (*CA, error) {
	if now == nil {
		now = time.Now
	}
	if !mesh.ValidTrustDomain(trustDomain) {
		return nil, fmt.Errorf("open certificate authority: bad trust domain %q", trustDomain)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	defer unlock()
	ca := &CA{dir: dir, trustDomain: trustDomain, now: now}
	if err := ca.createMissing(); err != nil {
		return nil, err
	}
	if _, err := ca.read(); errors.Is(err, ErrForeign) {
		return nil, fmt.Errorf("%w; use another directory, or its trust domain", err)
	} else if err != nil {
		return nil, err
	}
	return ca, nil
}

// lockDir serialises creation among processes; the lock goes with the descriptor, also when its holder is killed.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// createMissing makes an authority if the directory has none.
func (ca *CA) createMissing() error {
	exists := func(name string) bool {
		_, err := os.Lstat(filepath.Join(ca.dir, name))
		return !errors.Is(err, os.ErrNotExist)
	}
	if exists(certFile) || exists(keyFile) {
		return nil
	}
	certPEM, keyPEM, err := NewRoot(ca.trustDomain, ca.now(), RootLife)
	// The key goes first: a crash between the two leaves a key alone, which the next opener reports.
	if err == nil {
		err = writeAtomic(filepath.Join(ca.dir, keyFile), keyPEM, 0o600)
	}
	if err == nil {
		if err = writeAtomic(filepath.Join(ca.dir, certFile), certPEM, 0o644); err != nil {
			err = errors.Join(err, os.Remove(filepath.Join(ca.dir, keyFile)))
		}
	}
	if err != nil {
		return fmt.Errorf("create certificate authority in %s: %w", ca.dir, err)
	}
	return nil
}

// read takes in the files if they have changed, and reports whether they have. Files that are no usable authority
// change nothing: the last good ones stay in force, and the error is told once.
func (ca *CA) read() (changed bool, err error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("open certificate authority in %s: %w", ca.dir, err)
		}
	}()
	certPEM, certErr := readBounded(filepath.Join(ca.dir, certFile))
	keyPEM, keyErr := readBounded(filepath.Join(ca.dir, keyFile))
	if ca.raw[0] != nil && bytes.Equal(certPEM, ca.raw[0]) && bytes.Equal(keyPEM, ca.raw[1]) {
		return false, nil
	}
	ca.raw = [2][]byte{append([]byte{}, certPEM...), append([]byte{}, keyPEM...)}
	switch {
	case errors.Is(certErr, os.ErrNotExist):
		return false, fmt.Errorf("%s is there, but %s is missing; restore it, or remove both: %w", keyFile, certFile, ErrBroken)
	case errors.Is(keyErr, os.ErrNotExist):
		return false, fmt.Errorf("%s is there, but %s is missing; restore it, or remove both: %w", certFile, keyFile, ErrBroken)
	case certErr != nil || keyErr != nil:
		return false, errors.Join(certErr, keyErr)
	}
	signer, err := ca.parse(certPEM, keyPEM)
	if err != nil {
		return false, err
	}
	ca.signer, ca.roots = signer, encodeCerts(signer.Roots())
	return true, nil
}

// parse finds the certificate that belongs to the key, which need not be the first one.
func (ca *CA) parse(certPEM, keyPEM []byte) (*Signer, error) {
	certs, err := decodeCerts(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %v: %w", certFile, err, ErrBroken)
	}
	key, err := decodeKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %v: %w", keyFile, err, ErrBroken)
	}
	for _, c := range certs {
		if sameKey(key.Public(), c.PublicKey) {
			return NewSigner(SignerConfig{TrustDomain: ca.trustDomain, Now: ca.now,
				Chain: encodeCerts([]*x509.Certificate{c}), Key: keyPEM, Roots: encodeCerts(certs)})
		}
	}
	return nil, fmt.Errorf("no certificate in %s belongs to %s: %w", certFile, keyFile, ErrBroken)
}

// Issue makes a key and a leaf for id, which must be of the authority's trust domain.
func (ca *CA) Issue(id mesh.Identity) (*Leaf, error) {
	ca.mu.Lock()
	signer := ca.signer
	ca.mu.Unlock()
	return signer.Issue(id)
}

// TrustDomain is the trust domain that the authority speaks for.
func (ca *CA) TrustDomain() string { return ca.trustDomain }

// Roots is the trust bundle, a set of PEM certificates. The caller must not change it.
func (ca *CA) Roots() []byte {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.roots
}

// Certify is Issuer's.
func (ca *CA) Certify(_ context.Context, ids []mesh.Identity) Batch {
	b := Batch{Roots: ca.Roots(), Issued: make([]Issued, len(ids))}
	for i, id := range ids {
		b.Issued[i].Leaf, b.Issued[i].Err = ca.Issue(id)
	}
	return b
}

// Watch is Issuer's: the directory is read again every few seconds.
func (ca *CA) Watch(ctx context.Context, roots func([]byte), failed func(error)) {
	roots(ca.Roots())
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch changed, err := ca.read(); {
		case err != nil:
			failed(err)
		case changed:
			roots(ca.Roots())
		}
	}
}
