package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
)

// FuzzPeerIdentity: whatever a certificate's names are, it is taken for an identity only if that is its one name, and
// spelled as identities are.
func FuzzPeerIdentity(f *testing.F) {
	f.Add("spiffe://td/ns/a/sa/b", "", uint16(x509.KeyUsageDigitalSignature), false)
	f.Add("spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/c", uint16(x509.KeyUsageDigitalSignature), false)
	f.Add("spiffe://td/ns/%61/sa/b", "", uint16(x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign), true)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, one, other string, usage uint16, ca bool) {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsage(usage & 0x1ff), IsCA: ca, BasicConstraintsValid: ca}
		for _, s := range []string{one, other} {
			if u, err := url.Parse(s); err == nil && s != "" {
				template.URIs = append(template.URIs, u)
			}
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		id, err := PeerIdentity(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}})
		if err != nil {
			return
		}
		if len(cert.URIs) != 1 || cert.URIs[0].String() != id.String() || cert.IsCA || cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
			t.Fatalf("%v, usage %x, CA %v is taken for %s", cert.URIs, cert.KeyUsage, cert.IsCA, id)
		}
		if again, err := mesh.ParseIdentity(id.String()); err != nil || again != id {
			t.Fatalf("%s reads as %s, %v", id, again, err)
		}
	})
}

// FuzzPeerCertificate: bytes that are no certificate of a workload are none, whatever else they are.
func FuzzPeerCertificate(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	id := mesh.Identity{TrustDomain: "td", Namespace: "a", ServiceAccount: "b"}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{id.URL()}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	v := &verifier{roots: x509.NewCertPool(), now: time.Now, usage: x509.ExtKeyUsageClientAuth, trustDomain: "td"}
	f.Fuzz(func(t *testing.T, der []byte) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		cs := tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert, cert}, NegotiatedProtocol: mesh.ALPNConduit}
		if err := v.verify(cs); err == nil {
			t.Fatal("a certificate of nobody is trusted")
		}
		_, _ = PeerIdentity(&cs)
	})
}
