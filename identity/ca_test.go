package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
)

const domain = "cluster.local"

var web = mesh.Identity{TrustDomain: domain, Namespace: "shop", ServiceAccount: "web"}

func openCA(t *testing.T, dir string) *CA {
	t.Helper()
	ca, err := OpenCA(dir, domain, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestIssuedLeafIsAnSVID(t *testing.T) {
	ca := openCA(t, t.TempDir())
	leaf, err := ca.Issue(web)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(leaf.Chain, leaf.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca.Roots()) {
		t.Fatal("the trust bundle holds no certificate")
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("usage %v: %v", usage, err)
		}
	}
	if n := len(pair.Leaf.URIs); n != 1 || pair.Leaf.URIs[0].String() != "spiffe://cluster.local/ns/shop/sa/web" {
		t.Errorf("URI SANs %v, want the one SPIFFE ID", pair.Leaf.URIs)
	}
	if pair.Leaf.IsCA || pair.Leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("leaf: IsCA %v, KeyUsage %b", pair.Leaf.IsCA, pair.Leaf.KeyUsage)
	}
	if life := leaf.NotAfter.Sub(pair.Leaf.NotBefore); life != LeafLife+backdate || !pair.Leaf.NotAfter.Equal(leaf.NotAfter) {
		t.Errorf("life %v, want %v and %v for slow clocks; it ends %v and is said to end %v", life, LeafLife, backdate, pair.Leaf.NotAfter, leaf.NotAfter)
	}
	if pair.Leaf.NotAfter.After(time.Now().Add(LeafLife)) {
		t.Errorf("leaf ends %v, later than its life from now", pair.Leaf.NotAfter)
	}
}

// The root is constrained: even its own key cannot speak for another trust domain.
func TestRootSpeaksForItsTrustDomainOnly(t *testing.T) {
	ca := openCA(t, t.TempDir())
	ca.signer.trustDomain = "other.example" // past the check in Sign
	leaf, err := ca.Issue(mesh.Identity{TrustDomain: "other.example", Namespace: "a", ServiceAccount: "b"})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(leaf.Chain)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Roots())
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.CANotAuthorizedForThisName {
		t.Fatalf("Verify: %v, want a name constraint violation", err)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := openCA(t, t.TempDir())
	for _, id := range []mesh.Identity{
		{},
		{TrustDomain: "other.example", Namespace: "shop", ServiceAccount: "web"},
		{TrustDomain: domain, Namespace: "shop/x", ServiceAccount: "web"},
		{TrustDomain: domain, Namespace: "", ServiceAccount: "web"},
	} {
		if _, err := ca.Issue(id); err == nil {
			t.Errorf("Issue(%+v) succeeded", id)
		}
	}
}

func TestOpenCAConcurrently(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	var wg sync.WaitGroup
	roots := make([][]byte, 8)
	for i := range roots {
		wg.Go(func() {
			ca, err := OpenCA(dir, domain, nil)
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = ca.Roots()
		})
	}
	wg.Wait()
	for i := range roots {
		if !bytes.Equal(roots[i], roots[0]) {
			t.Fatalf("opener %d got another authority", i)
		}
	}
	st, err := os.Stat(filepath.Join(dir, "ca.key"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("ca.key: %v %v, want mode 0600", st.Mode(), err)
	}
}

func TestSeveralRootsAreAllTrusted(t *testing.T) {
	oldDir, newDir := t.TempDir(), t.TempDir()
	oldCA, newCA := openCA(t, oldDir), openCA(t, newDir)
	bundle := append(bytes.Clone(oldCA.Roots()), newCA.Roots()...)
	if err := os.WriteFile(filepath.Join(newDir, "ca.crt"), bundle, 0o644); err != nil {
		t.Fatal(err)
	}
	both := openCA(t, newDir)
	if n := bytes.Count(both.Roots(), []byte("BEGIN CERTIFICATE")); n != 2 {
		t.Fatalf("%d roots in the bundle, want 2", n)
	}
	leaf, err := both.Issue(web)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(leaf.Chain)
	cert, _ := x509.ParseCertificate(block.Bytes)
	if err := cert.CheckSignatureFrom(newCA.signer.cert); err != nil {
		t.Errorf("the root that belongs to ca.key did not sign: %v", err)
	}
}

func write(name, content string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func remove(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenCAErrors(t *testing.T) {
	tests := []struct {
		name   string
		spoil  func(*testing.T, string)
		domain string
		later  time.Duration
		is     error
		says   string
	}{
		{"key missing", remove("ca.key"), domain, 0, ErrBroken, "ca.key is missing"},
		{"certificate missing", remove("ca.crt"), domain, 0, ErrBroken, "ca.crt is missing"},
		{"empty key", write("ca.key", ""), domain, 0, ErrBroken, "ca.key: no PEM block"},
		{"key is rubbish", write("ca.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), domain, 0, ErrBroken, "ca.key"},
		{"certificate is text", write("ca.crt", "hello\n"), domain, 0, ErrBroken, "ca.crt: it has no certificate"},
		{"foreign key", func(t *testing.T, dir string) {
			other := t.TempDir()
			openCA(t, other)
			data, err := os.ReadFile(filepath.Join(other, "ca.key"))
			if err != nil {
				t.Fatal(err)
			}
			write("ca.key", string(data))(t, dir)
		}, domain, 0, ErrBroken, "no certificate in ca.crt belongs to ca.key"},
		{"foreign trust domain", nil, "other.example", 0, ErrForeign, `trust domain "cluster.local"`},
		{"expired", nil, domain, RootLife + time.Hour, ErrExpired, "a new one is needed"},
		{"not yet valid", nil, domain, -2 * time.Hour, ErrExpired, "clock"},
		{"leaf in place of root", func(t *testing.T, dir string) {
			leaf, err := openCA(t, dir).Issue(web)
			if err != nil {
				t.Fatal(err)
			}
			write("ca.crt", string(leaf.Chain))(t, dir)
			write("ca.key", string(leaf.Key))(t, dir)
		}, domain, 0, ErrBroken, "no authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			openCA(t, dir)
			if tt.spoil != nil {
				tt.spoil(t, dir)
			}
			_, err := OpenCA(dir, tt.domain, func() time.Time { return time.Now().Add(tt.later) })
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("OpenCA: %v; want %v saying %q", err, tt.is, tt.says)
			}
		})
	}
}
