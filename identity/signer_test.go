package identity

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"conduit.io/conduit/mesh"
)

// authority is a certificate with its key, for tests.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// newAuthority makes one under parent, or a root.
func newAuthority(t *testing.T, parent *authority, key crypto.Signer, change func(*x509.Certificate)) *authority {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: rand.Text()}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	if change != nil {
		change(tmpl)
	}
	a := &authority{key: key}
	if parent == nil {
		parent = &authority{cert: tmpl, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) pem() []byte { return encodeCerts([]*x509.Certificate{a.cert}) }

func keyPEM(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// verify checks a chain under roots, and returns its leaf and its length.
func verify(t *testing.T, chain, roots []byte) (*x509.Certificate, int) {
	t.Helper()
	certs, err := decodeCerts(chain)
	if err != nil {
		t.Fatal(err)
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between}); err != nil {
		t.Error(err)
	}
	return certs[0], len(certs)
}

func TestSignersOfEveryKind(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := newAuthority(t, nil, ecKey(t, elliptic.P384()), nil)
	other := newAuthority(t, nil, ecKey(t, elliptic.P256()), nil)
	short := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) }
	upper := newAuthority(t, root, ecKey(t, elliptic.P521()), short)
	for _, tt := range []struct {
		name         string
		signer       *authority
		chain, roots []byte // chain without signer's certificate
		length       int
		short        bool
	}{
		{"its own root", root, nil, nil, 1, false},
		{"its own root, given twice", root, nil, root.pem(), 1, false},
		{"RSA, as cert-manager makes it", newAuthority(t, nil, rsaKey, nil), nil, nil, 1, false},
		{"Ed25519 under a root", newAuthority(t, root, edKey, nil), nil, root.pem(), 2, false},
		{"two below a root that is one of two", newAuthority(t, upper, ecKey(t, elliptic.P256()), nil), upper.pem(),
			append(other.pem(), root.pem()...), 3, true},
		{"with its root in the chain", newAuthority(t, root, ecKey(t, elliptic.P256()), short), root.pem(), root.pem(), 2, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := NewSigner(SignerConfig{TrustDomain: domain, Chain: append(tt.signer.pem(), tt.chain...),
				Key: keyPEM(t, tt.signer.key), Roots: tt.roots})
			if err != nil {
				t.Fatal(err)
			}
			chain, end, err := s.Sign(web, ecKey(t, elliptic.P256()).Public(), "controller.svc")
			if err != nil {
				t.Fatal(err)
			}
			leaf, n := verify(t, chain, encodeCerts(s.Roots()))
			if n != tt.length || !leaf.NotAfter.Equal(end) || leaf.DNSNames[0] != "controller.svc" || leaf.URIs[0].String() != web.String() {
				t.Errorf("chain of %d, leaf ends %v (said %v), names %v %v", n, leaf.NotAfter, end, leaf.DNSNames, leaf.URIs)
			}
			if limit := time.Now().Add(time.Hour); tt.short != leaf.NotAfter.Before(limit) {
				t.Errorf("the leaf ends %v; must not outlive what is above it", leaf.NotAfter)
			}
		})
	}
}

func TestSignersThatAreNone(t *testing.T) {
	root := newAuthority(t, nil, ecKey(t, elliptic.P256()), nil)
	between := newAuthority(t, root, ecKey(t, elliptic.P256()), nil)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	key := keyPEM(t, root.key)
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("xxxx")})
	oldEncrypted := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("xxxx"),
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}})
	change := func(f func(*x509.Certificate)) *authority { return newAuthority(t, root, ecKey(t, elliptic.P256()), f) }
	under := func(a *authority) SignerConfig {
		return SignerConfig{TrustDomain: domain, Chain: a.pem(), Key: keyPEM(t, a.key), Roots: root.pem()}
	}
	foreignURI, _, err := NewRoot("other.example", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	foreign, foreignKey, err := NewRoot("other.example", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		c    SignerConfig
		is   error
		says string
	}{
		{"no key", SignerConfig{Chain: root.pem()}, ErrBroken, "no PEM block"},
		{"an encrypted key", SignerConfig{Chain: root.pem(), Key: encrypted}, ErrBroken, "encrypted"},
		{"a key encrypted the old way", SignerConfig{Chain: root.pem(), Key: oldEncrypted}, ErrBroken, "encrypted"},
		{"rubbish for a key", SignerConfig{Chain: root.pem(), Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("topsecret")})}, ErrBroken, "cannot be read"},
		{"a certificate for a key", SignerConfig{Chain: root.pem(), Key: root.pem()}, ErrBroken, "no private key"},
		{"a weak key", SignerConfig{Chain: root.pem(), Key: keyPEM(t, weak)}, ErrBroken, "1024 bits"},
		{"no certificate", SignerConfig{Key: key}, ErrBroken, "it has no certificate"},
		{"the key of another", SignerConfig{Chain: between.pem(), Key: key, Roots: root.pem()}, ErrBroken, "does not belong"},
		{"no root", SignerConfig{Chain: between.pem(), Key: keyPEM(t, between.key)}, ErrBroken, "no roots are given"},
		{"roots of others", SignerConfig{Chain: between.pem(), Key: keyPEM(t, between.key), Roots: foreignURI}, ErrBroken, "is not accepted"},
		{"roots that are none", SignerConfig{Chain: root.pem(), Key: key, Roots: []byte("x")}, ErrBroken, "roots: it has no certificate"},
		{"another trust domain", SignerConfig{Chain: foreign, Key: foreignKey}, ErrForeign, `"other.example"`},
		{"no authority", under(change(func(c *x509.Certificate) { c.IsCA = false })), ErrBroken, "no authority"},
		{"may not sign", under(change(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })), ErrBroken, ""},
		{"not for this domain", under(change(func(c *x509.Certificate) { c.PermittedURIDomains = []string{"a.example"} })), ErrBroken, "is not accepted"},
		{"for servers only", under(change(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), ErrBroken, "is not accepted"},
		{"expired", under(change(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), ErrExpired, "ended at"},
		{"not yet", under(change(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })), ErrExpired, "clock"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.c.TrustDomain = domain
			_, err := NewSigner(tt.c)
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("%v; want %v saying %q", err, tt.is, tt.says)
			}
			if strings.Contains(err.Error(), "topsecret") {
				t.Error("the error quotes the key")
			}
		})
	}
}

// TestDirectoryIsReadAgain: an authority that is replaced takes effect in an agent that runs; a broken one does not.
func TestDirectoryIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ca := openCA(t, dir)
		first := ca.Roots()
		k := NewKeeper(ca, nil)
		batches, faults := make(chan []*Leaf, 10), make(chan error, 10)
		go k.Run(t.Context(), func(l []*Leaf) { batches <- l }, func(err error) { faults <- err })
		if <-batches; !bytes.Equal(k.Roots(), first) {
			t.Fatal("the roots at the start are not those of the directory")
		}
		if err := os.WriteFile(filepath.Join(dir, certFile), []byte("oops"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := <-faults; !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), certFile) {
			t.Errorf("a broken file: %v", err)
		}
		if _, err := ca.Issue(web); err != nil || !bytes.Equal(ca.Roots(), first) {
			t.Errorf("with a broken file: %v; the last good one should stay in force", err)
		}
		cert, key, err := NewRoot(domain, time.Now(), RootLife)
		if err != nil {
			t.Fatal(err)
		}
		both := append(bytes.Clone(first), cert...)
		for name, data := range map[string][]byte{certFile: both, keyFile: key} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if <-batches; !bytes.Equal(k.Roots(), both) {
			t.Error("the new roots were not taken in")
		}
		k.Want([]mesh.Identity{web})
		leaf := <-batches
		verify(t, leaf[0].Chain, cert)
		<-time.After(time.Hour)
		if len(faults) != 0 || len(batches) != 0 {
			t.Errorf("%d faults and %d batches more; each should be told once", len(faults), len(batches))
		}
		if cert, key, err = NewRoot(domain, time.Now(), RootLife); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{certFile: cert, keyFile: key} { // the roots before are not trusted any more
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if l := <-batches; len(l) != 0 || !bytes.Equal(k.Roots(), cert) {
			t.Errorf("%d leaves came before the roots", len(l))
		}
		began := time.Now()
		if leaf = <-batches; time.Since(began) > replaceWithin {
			t.Errorf("a leaf that nobody accepts was replaced after %v", time.Since(began))
		}
		verify(t, leaf[0].Chain, cert)
	})
}
