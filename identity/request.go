package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/url"

	"conduit.io/conduit/mesh"
)

// MaxRequest bounds a certificate request, in bytes of DER: one with a P-256 key and the longest SPIFFE ID fits.
const MaxRequest = 8192

// Fault says what is wrong with a certificate request.
type Fault string

// The faults of a request.
const (
	FaultSize      Fault = "size"      // longer than MaxRequest
	FaultMalformed Fault = "malformed" // not a certificate request (RFC 2986)
	FaultSignature Fault = "signature" // not signed with its own key
	FaultKey       Fault = "key"       // neither P-256 nor Ed25519
	FaultExtension Fault = "extension" // asks for more than a name: to be an authority, for usages, or for anything else
	FaultName      Fault = "name"      // not exactly the one SPIFFE ID
)

// RequestError is what ParseRequest returns.
type RequestError struct {
	Fault  Fault
	Detail string
}

func (e *RequestError) Error() string {
	return "certificate request: " + string(e.Fault) + ": " + e.Detail
}

func faulty(f Fault, format string, args ...any) error {
	return &RequestError{Fault: f, Detail: fmt.Sprintf(format, args...)}
}

// NewRequest makes a key and a certificate request (DER) for id.
func NewRequest(id mesh.Identity) (key *ecdsa.PrivateKey, csr []byte, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("request certificate for %s: %w", id, err)
	}
	tmpl := &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}
	if csr, err = x509.CreateCertificateRequest(rand.Reader, tmpl, key); err != nil {
		return nil, nil, fmt.Errorf("request certificate for %s: %w", id, err)
	}
	return key, csr, nil
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// ParseRequest checks a certificate request (DER) for id, and returns its key. Nothing but the key is to be taken from
// a request; that it asks for exactly one SPIFFE ID and nothing else shows that both sides mean the same. Its errors are
// *RequestError.
//
// A request proves that its maker had the key when it was made, and nothing of when that was. Somebody who replays it can
// only obtain a certificate for a key that he does not have; so requests need no nonce, and replays are not refused.
func ParseRequest(der []byte, id mesh.Identity) (crypto.PublicKey, error) {
	if len(der) > MaxRequest {
		return nil, faulty(FaultSize, "%d bytes; at most %d are taken", len(der), MaxRequest)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, faulty(FaultMalformed, "%v", err)
	}
	switch key := csr.PublicKey.(type) { // first: a signature by a strange key need not be computed
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, faulty(FaultKey, "ECDSA on %s; want P-256", key.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return nil, faulty(FaultKey, "%v; want ECDSA on P-256, or Ed25519", csr.PublicKeyAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, faulty(FaultSignature, "%v", err)
	}
	if len(csr.Extensions) != 1 || !csr.Extensions[0].Id.Equal(oidSubjectAltName) {
		return nil, faulty(FaultExtension, "%d extensions; want a subjectAltName alone", len(csr.Extensions))
	}
	return csr.PublicKey, checkName(csr.Extensions[0].Value, id)
}

// checkName reads the subjectAltName (RFC 5280, 4.2.1.6) itself: crypto/x509 passes over the kinds of names that it does
// not know, and parses URIs, of which one identity would have many spellings.
func checkName(san []byte, id mesh.Identity) error {
	const uri = 6 // GeneralName's uniformResourceIdentifier
	var names, name asn1.RawValue
	rest, err := asn1.Unmarshal(san, &names)
	if err != nil || len(rest) > 0 || names.Class != asn1.ClassUniversal || names.Tag != asn1.TagSequence {
		return faulty(FaultMalformed, "subjectAltName is no sequence")
	}
	rest, err = asn1.Unmarshal(names.Bytes, &name)
	if err != nil || len(rest) > 0 || name.Class != asn1.ClassContextSpecific || name.Tag != uri || name.IsCompound {
		return faulty(FaultName, "want exactly one name, a URI")
	}
	if string(name.Bytes) != id.String() {
		return faulty(FaultName, "%.200q is not %s", string(name.Bytes), id)
	}
	return nil
}
