package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
)

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t testing.TB, key crypto.Signer, tmpl x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRequestIsAccepted(t *testing.T) {
	key, csr, err := NewRequest(web)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ParseRequest(csr, web)
	if err != nil || !key.PublicKey.Equal(pub) {
		t.Fatalf("key %v, %v", pub, err)
	}
	edPub, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err = ParseRequest(request(t, edKey, x509.CertificateRequest{URIs: []*url.URL{web.URL()}}), web)
	if err != nil || !edPub.Equal(pub) {
		t.Fatalf("Ed25519: key %v, %v", pub, err)
	}
	longest := mesh.Identity{TrustDomain: strings.Repeat("d", 255), Namespace: strings.Repeat("n", 63),
		ServiceAccount: strings.Repeat("s", 253)}
	if _, csr, err = NewRequest(longest); err != nil || len(csr) > MaxRequest {
		t.Fatalf("the longest identity: %d bytes, %v", len(csr), err)
	}
	if _, err := ParseRequest(csr, longest); err != nil {
		t.Error(err)
	}
}

// san is a subjectAltName of general names as they are.
func san(t testing.TB, names ...asn1.RawValue) pkix.Extension {
	t.Helper()
	value, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidSubjectAltName, Value: value}
}

func uriName(s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(s)}
}

func TestRequestIsRefused(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	uri := []*url.URL{web.URL()}
	basic, err := asn1.Marshal(struct{ CA bool }{true})
	if err != nil {
		t.Fatal(err)
	}
	ca := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: basic}
	otherName := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{6, 1, 42, 0xa0, 2, 5, 0}}
	good := request(t, key, x509.CertificateRequest{URIs: uri})
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	for _, tt := range []struct {
		name string
		csr  []byte
		want Fault
	}{
		{"nothing", nil, FaultMalformed},
		{"text", []byte("hello"), FaultMalformed},
		{"cut off", good[:len(good)-1], FaultMalformed},
		{"something behind it", append(bytes.Clone(good), 0), FaultMalformed},
		{"huge", bytes.Repeat([]byte{0x30}, MaxRequest+1), FaultSize},
		{"forged", forged, FaultSignature},
		{"P-224", request(t, ecKey(t, elliptic.P224()), x509.CertificateRequest{URIs: uri}), FaultKey},
		{"P-384", request(t, ecKey(t, elliptic.P384()), x509.CertificateRequest{URIs: uri}), FaultKey},
		{"RSA", request(t, rsaKey, x509.CertificateRequest{URIs: uri}), FaultKey},
		{"no name", request(t, key, x509.CertificateRequest{}), FaultExtension},
		{"a subject in place of the name", request(t, key, x509.CertificateRequest{Subject: pkix.Name{CommonName: web.String()}}), FaultExtension},
		{"an authority", request(t, key, x509.CertificateRequest{URIs: uri, ExtraExtensions: []pkix.Extension{ca}}), FaultExtension},
		{"another identity", request(t, key, x509.CertificateRequest{URIs: []*url.URL{api.URL()}}), FaultName},
		{"two identities", request(t, key, x509.CertificateRequest{URIs: []*url.URL{web.URL(), api.URL()}}), FaultName},
		{"a DNS name", request(t, key, x509.CertificateRequest{URIs: uri, DNSNames: []string{"web.shop.svc"}}), FaultName},
		{"an address", request(t, key, x509.CertificateRequest{URIs: uri, IPAddresses: []net.IP{{10, 0, 0, 1}}}), FaultName},
		{"mail", request(t, key, x509.CertificateRequest{URIs: uri, EmailAddresses: []string{"a@b.c"}}), FaultName},
		{"a name that crypto/x509 passes over", request(t, key, x509.CertificateRequest{
			ExtraExtensions: []pkix.Extension{san(t, uriName(web.String()), otherName)}}), FaultName},
		{"another spelling", request(t, key, x509.CertificateRequest{
			ExtraExtensions: []pkix.Extension{san(t, uriName("spiffe://cluster.local/ns/shop/sa/%77eb"))}}), FaultName},
		{"a query", request(t, key, x509.CertificateRequest{
			ExtraExtensions: []pkix.Extension{san(t, uriName(web.String()+"?"))}}), FaultName},
		{"an empty list of names", request(t, key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(t)}}), FaultName},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pub, err := ParseRequest(tt.csr, web)
			var fault *RequestError
			if !errors.As(err, &fault) || fault.Fault != tt.want {
				t.Fatalf("key %v, error %v; want fault %q", pub, err, tt.want)
			}
		})
	}
}

// FuzzParseRequest: whatever is accepted is signed by its own key, of a kind that is allowed, and for the one name.
func FuzzParseRequest(f *testing.F) {
	_, good, err := NewRequest(web)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(request(f, ecKey(f, elliptic.P256()), x509.CertificateRequest{URIs: []*url.URL{web.URL()}, DNSNames: []string{"a"}}))
	f.Add(request(f, ecKey(f, elliptic.P384()), x509.CertificateRequest{URIs: []*url.URL{web.URL()}}))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		pub, err := ParseRequest(der, web)
		var fault *RequestError
		if err != nil {
			if !errors.As(err, &fault) || len(err.Error()) > 8192 {
				t.Fatalf("%T of %d bytes: %v", err, len(err.Error()), err)
			}
			return
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || csr.CheckSignature() != nil || len(csr.URIs) != 1 || csr.URIs[0].String() != web.String() ||
			len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses) > 0 || pub == nil {
			t.Fatalf("accepted: %+v, %v", csr, err)
		}
	})
}
