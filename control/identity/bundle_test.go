package identity

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	certs "conduit.io/conduit/identity"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var begin = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func root(t *testing.T, life time.Duration) *x509.Certificate {
	t.Helper()
	cert, _, err := certs.NewRoot(domain, begin, life)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseOne(string(cert))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestFirstSignerIsNews: whichever of Secret and ConfigMap is seen first, the controller's own certificate does not wait for the pause
// after an attempt that failed.
func TestFirstSignerIsNews(t *testing.T) {
	now := func() time.Time { return begin }
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: IssuerSecret}}
	if err := fill(secret, domain, begin, DefaultRootLife); err != nil {
		t.Fatal(err)
	}
	signer, err := signerOf(secret, domain, certs.LeafLife, now)
	if err != nil {
		t.Fatal(err)
	}
	var none *bundle
	b, _ := none.plan(signer.Roots(), true, rules{now: begin, delay: time.Minute, leafLife: certs.LeafLife})
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: RootsConfigMap}}
	if err := b.write(cm); err != nil {
		t.Fatal(err)
	}
	for _, secretFirst := range []bool{true, false} {
		a := newAuthority(domain, certs.LeafLife, now)
		see := []func() error{func() error { return a.setBundle(cm) }, func() error { return a.setSecret(secret) }}
		if secretFirst {
			slices.Reverse(see)
		}
		if err := see[0](); err != nil {
			t.Fatal(err)
		}
		_, news := a.trust()
		if err := see[1](); err != nil {
			t.Fatal(err)
		}
		select {
		case <-news:
		default:
			t.Errorf("the Secret seen first: %t: it is no news that certificates can be signed", secretFirst)
		}
	}
}

// TestPlan follows a bundle through rotations: who is trusted, since when each root may sign, and when it goes.
func TestPlan(t *testing.T) {
	const delay, leafLife, year = 2 * time.Minute, 24 * time.Hour, 365 * 24 * time.Hour
	a, b, c, brief, hand := root(t, year), root(t, year), root(t, year), root(t, 48*time.Hour), root(t, time.Hour)
	names := map[string]string{}
	for name, cert := range map[string]*x509.Certificate{"a": a, "b": b, "c": c, "brief": brief, "hand": hand} {
		names[fingerprint(cert.Raw)] = name
	}
	type roots = []*x509.Certificate
	var cur *bundle
	for _, step := range []struct {
		name   string
		at     time.Duration // since begin
		issuer roots
		add    *x509.Certificate // by hand, before
		want   string            // root@may sign-retires, in minutes since begin
	}{
		{"nobody trusts anything yet: no delay", 0, roots{a}, nil, "a@0"},
		{"nothing new", time.Hour, roots{a}, nil, "a@0"},
		{"no usable issuer changes nothing", time.Hour, nil, nil, "a@0"},
		{"a second root is published first", 2 * time.Hour, roots{b}, nil, "a@0-1622 b@122"},
		{"its successor comes before it was used: the first one still signs", 2*time.Hour + time.Minute, roots{c}, nil, "a@0-1623 b@122-1623 c@123"},
		{"waiting", 2*time.Hour + 2*time.Minute, roots{c}, nil, "a@0-1623 b@122-1623 c@123"},
		{"in use", 3 * time.Hour, roots{c}, nil, "a@0-1623 b@122-1623 c@123"},
		{"back to the first: it is known, so there is no delay", 4 * time.Hour, roots{a}, nil, "a@0 b@122-1623 c@123-1740"},
		{"somebody adds a root", 5 * time.Hour, roots{a}, hand, "a@0 b@122-1623 c@123-1740 hand"},
		{"the second has done its time", 1623 * time.Minute, roots{a}, nil, "a@0 c@123-1740 hand"},
		{"and the third", 1740 * time.Minute, roots{a}, nil, "a@0 hand"},
		{"two roots with one issuer", 1800 * time.Minute, roots{a, brief}, nil, "a@0 brief@1802 hand"},
		{"an expired root goes; one that was added by hand stays", 60 * time.Hour, nil, nil, "a@0 hand"},
		{"all that was managed has expired: no delay", 2 * year, roots{b}, nil, fmt.Sprintf("b@%d hand", 2*year/time.Minute)},
	} {
		now := begin.Add(step.at)
		if step.add != nil {
			cur.roots[fingerprint(step.add.Raw)] = step.add
		}
		r := rules{now: now, delay: delay, leafLife: leafLife}
		next, _ := cur.plan(step.issuer, true, r)
		if s := render(next, names); s != step.want {
			t.Errorf("%s: %s; want %s", step.name, s, step.want)
		}
		if again, more := next.plan(step.issuer, true, r); more {
			t.Errorf("%s: planned twice, it changes again: %+v, %+v", step.name, next.plans, again.plans)
		}
		// Written and read, it is the same.
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: RootsConfigMap}}
		if err := next.write(cm); err != nil {
			t.Fatal(err)
		}
		read, edited, err := parseBundle(cm)
		if err != nil || edited || read.revision() != next.revision() || len(read.plans) != len(next.plans) {
			t.Errorf("%s: read back: edited %v, %v, %+v", step.name, edited, err, read)
		}
		if _, more := read.plan(step.issuer, true, r); more {
			t.Errorf("%s: read back, it is planned otherwise", step.name)
		}
		cur = read
	}
}

// render is a bundle as the table of TestPlan has it.
func render(b *bundle, names map[string]string) string {
	var got []string
	for f := range b.roots {
		s := names[f]
		if p, ok := b.plans[f]; ok {
			s += fmt.Sprintf("@%d", p.SignFrom.Sub(begin)/time.Minute)
			if !p.Retire.IsZero() {
				s += fmt.Sprintf("-%d", p.Retire.Sub(begin)/time.Minute)
			}
		}
		got = append(got, s)
	}
	slices.Sort(got)
	return strings.Join(got, " ")
}

func TestBundlesThatAreNone(t *testing.T) {
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root(t, time.Hour).Raw})
	signer, err := certs.OpenCA(t.TempDir(), domain, nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := signer.Issue(identityOf("shop", "web"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, data, says string }{
		{"nothing", "", "no certificate"},
		{"text", "hello", "no certificate"},
		{"a key in it", string(cert) + string(leaf.Key), `type "PRIVATE KEY"`},
		{"no authority", string(leaf.Chain), "not an authority's"},
		{"broken", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1"},
	} {
		_, _, err := parseBundle(&corev1.ConfigMap{Data: map[string]string{rootsKey: tt.data}})
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.says)
		}
	}
	many := ""
	for range maxRoots + 1 {
		many += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root(t, time.Hour).Raw}))
	}
	if _, err := parseRoots(many); err == nil {
		t.Error("a bundle of any size is taken")
	}
}

func TestReplaysAreBounded(t *testing.T) {
	now := begin
	r := newReplays(time.Hour, func() time.Time { return now })
	one, two := root(t, time.Hour).PublicKey, root(t, time.Hour).PublicKey
	hash, ok := r.claim(one)
	if _, again := r.claim(one); !ok || again {
		t.Errorf("claimed %v, and again %v", ok, again)
	}
	r.release(hash)
	if _, ok := r.claim(one); !ok {
		t.Error("a key that was released cannot be claimed")
	}
	now = now.Add(61 * time.Minute)
	if _, ok := r.claim(two); !ok {
		t.Error("another key cannot be claimed")
	}
	if _, again := r.claim(one); again {
		t.Error("a key is forgotten before its certificate has expired")
	}
	for range 2 {
		now = now.Add(61 * time.Minute)
		r.claim(root(t, time.Hour).PublicKey)
	}
	if len(r.young)+len(r.old) > 3 {
		t.Errorf("%d keys are remembered", len(r.young)+len(r.old))
	}
}
