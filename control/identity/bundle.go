package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	certs "conduit.io/conduit/identity"

	corev1 "k8s.io/api/core/v1"
)

const (
	// rootsKey is the key of the ConfigMap's data, and of the Secret's.
	rootsKey = "ca.crt"
	// planAnnotation is where the leader keeps what it plans with each root.
	planAnnotation = "conduit.io/trust-roots"

	// maxRoots bounds the bundle: every agent and every proxy holds it.
	maxRoots = 64
	// retireSlack is added to the life of leaves before their root is removed: clocks differ, and a replica may have signed
	// with it for a moment longer.
	retireSlack = time.Hour
)

// bundle is the set of trusted roots, with plans. It is immutable.
type bundle struct {
	roots map[string]*x509.Certificate // by fingerprint
	plans map[string]rootPlan          // roots that somebody added by hand have none, and are never removed
}

// rootPlan is what the leader has decided about a root that it published.
type rootPlan struct {
	// SignFrom is when the first leaf may be signed under the root: everybody knows it by then.
	SignFrom time.Time `json:"signFrom"`
	// Retire is when the root is removed, because the last leaf under it has expired; zero while it is in use.
	Retire time.Time `json:"retire,omitzero"`
	// Own says that Conduit made the root, and may replace it.
	Own bool `json:"own,omitempty"`
}

// annotated is the content of the annotation. Digest is that of the PEM that it belongs to.
type annotated struct {
	Digest string              `json:"digest"`
	Roots  map[string]rootPlan `json:"roots"`
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// parseRoots takes as many roots as may be published, by fingerprint.
func parseRoots(data string) (map[string]*x509.Certificate, error) {
	parsed, err := certs.ParseRoots([]byte(data))
	if err != nil {
		return nil, err
	}
	out := map[string]*x509.Certificate{}
	for _, cert := range parsed {
		out[fingerprint(cert.Raw)] = cert
	}
	if len(out) > maxRoots {
		return nil, fmt.Errorf("it has more than %d certificates", maxRoots)
	}
	return out, nil
}

// parseBundle reads the ConfigMap. edited says that its roots were changed after the leader's last word on them: by hand.
func parseBundle(cm *corev1.ConfigMap) (b *bundle, edited bool, err error) {
	data := cm.Data[rootsKey]
	roots, err := parseRoots(data)
	if err != nil {
		return nil, false, fmt.Errorf("ConfigMap %s: %s: %w", cm.Name, rootsKey, err)
	}
	b = &bundle{roots: roots, plans: map[string]rootPlan{}}
	var a annotated
	if err := json.Unmarshal([]byte(cm.Annotations[planAnnotation]), &a); err != nil {
		return b, true, nil // as if somebody had put everything there by hand
	}
	for f, p := range a.Roots {
		if roots[f] != nil {
			b.plans[f] = p
		}
	}
	return b, a.Digest != fingerprint([]byte(data)), nil
}

// write puts the bundle into the ConfigMap.
func (b *bundle) write(cm *corev1.ConfigMap) error {
	data := string(b.pem())
	a, err := json.Marshal(annotated{Digest: fingerprint([]byte(data)), Roots: b.plans})
	if err != nil {
		return err
	}
	if cm.Data == nil {
		cm.Data = map[string]string{}
	}
	if cm.Annotations == nil {
		cm.Annotations = map[string]string{}
	}
	cm.Data[rootsKey], cm.Annotations[planAnnotation] = data, string(a)
	return nil
}

// certificates are the roots in an order of their own.
func (b *bundle) certificates() []*x509.Certificate {
	var out []*x509.Certificate
	for _, f := range slices.Sorted(maps.Keys(b.roots)) {
		out = append(out, b.roots[f])
	}
	return out
}

func (b *bundle) pem() []byte {
	var out []byte
	for _, c := range b.certificates() {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// size is the number of roots; 0 for nil.
func (b *bundle) size() int {
	if b == nil {
		return 0
	}
	return len(b.roots)
}

// expires is when the first root does.
func (b *bundle) expires() (first time.Time) {
	for _, c := range b.roots {
		if first.IsZero() || c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	return first
}

// revision changes exactly when the set of roots does.
func (b *bundle) revision() string {
	sum := sha256.Sum256([]byte(strings.Join(slices.Sorted(maps.Keys(b.roots)), " ")))
	return hex.EncodeToString(sum[:8])
}

// maySign says since when leaves may be signed under root; ok is false while the root is not published.
func (b *bundle) maySign(root *x509.Certificate) (from time.Time, ok bool) {
	f := fingerprint(root.Raw)
	if b == nil || b.roots[f] == nil {
		return time.Time{}, false
	}
	p, ok := b.plans[f]
	return p.SignFrom, ok
}

// rules are what the leader plans by.
type rules struct {
	now      time.Time
	delay    time.Duration // how long a new root is known to everybody before anything is signed under it
	leafLife time.Duration
}

// plan is the bundle that should follow b, given the roots of the issuer that is in the Secret (none when there is no
// usable one), and whether Conduit made it. b may be nil.
func (b *bundle) plan(issuer []*x509.Certificate, own bool, r rules) (next *bundle, changed bool) {
	next = &bundle{roots: map[string]*x509.Certificate{}, plans: map[string]rootPlan{}}
	inUse := false // some published root may have leaves
	if b != nil {
		for f, c := range b.roots {
			p, planned := b.plans[f]
			if planned && (r.now.After(c.NotAfter.Add(retireSlack)) || !p.Retire.IsZero() && !r.now.Before(p.Retire)) {
				continue
			}
			next.roots[f] = c
			if planned {
				next.plans[f] = p
				inUse = inUse || r.now.Before(c.NotAfter)
			}
		}
	}
	last, current := r.now, map[string]bool{}
	for _, c := range issuer {
		f := fingerprint(c.Raw)
		current[f] = true
		p, planned := next.plans[f]
		if !planned {
			p = rootPlan{SignFrom: r.now}
			if inUse {
				p.SignFrom = r.now.Add(r.delay)
			}
		}
		p.Retire, p.Own = time.Time{}, own
		next.roots[f], next.plans[f] = c, p
		if p.SignFrom.After(last) {
			last = p.SignFrom
		}
	}
	for f, p := range next.plans {
		if len(issuer) == 0 || current[f] || !p.Retire.IsZero() && !last.After(r.now) {
			continue
		}
		// Until the new root may be signed under, replicas go on under one of the old ones, whichever they have.
		if end := last.Add(r.leafLife + retireSlack); end.After(p.Retire) {
			p.Retire = end
			next.plans[f] = p
		}
	}
	return next, b == nil || !maps.EqualFunc(next.plans, b.plans, samePlan) || next.revision() != b.revision()
}

func samePlan(a, b rootPlan) bool {
	return a.SignFrom.Equal(b.SignFrom) && a.Retire.Equal(b.Retire) && a.Own == b.Own
}

// foreign reports whether the newest root in use was not made by Conduit: then nothing is made in its place.
func (b *bundle) foreign() bool {
	if b == nil {
		return false
	}
	for _, p := range b.plans {
		if p.Retire.IsZero() && !p.Own {
			return true
		}
	}
	return false
}
