package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"conduit.io/conduit/mesh"
)

// Why a peer is not accepted. VerifyError wraps one of them or an *IdentityError.
var (
	ErrNoCertificate = errors.New("peer has no certificate")
	ErrExpired       = errors.New("certificate is expired or not yet valid")
	ErrUntrusted     = errors.New("certificate is not signed by a root that we trust for this use")
	ErrNotWorkload   = errors.New("certificate is not one workload's") // not exactly one SPIFFE ID, or a CA's
	ErrTrustDomain   = errors.New("certificate is of another trust domain")
	ErrProtocol      = errors.New("peer offers no protocol of the mesh")
)

// ErrNoLeaf is wrapped when an identity of our own has no certificate.
var ErrNoLeaf = errors.New("no certificate yet")

// NoLeafError names the identity of our own that has no certificate; it wraps ErrNoLeaf.
type NoLeafError struct{ ID mesh.Identity }

// Error implements error.
func (e *NoLeafError) Error() string { return fmt.Sprintf("%s: %v", e.ID, ErrNoLeaf) }

// Unwrap gives ErrNoLeaf.
func (e *NoLeafError) Unwrap() error { return ErrNoLeaf }

// MeshReason is the mesh's word for it.
func (e *NoLeafError) MeshReason() mesh.Reason { return mesh.ReasonNoCertificate }

// IdentityError is a trustworthy peer that is somebody else.
type IdentityError struct{ Got, Want mesh.Identity }

// Error implements error.
func (e *IdentityError) Error() string {
	return fmt.Sprintf("certificate is of %s, expected %s", e.Got, e.Want)
}

// VerifyError is a peer that was not accepted.
type VerifyError struct{ Err error }

// Error implements error.
func (e *VerifyError) Error() string { return "verify peer: " + e.Err.Error() }

// Unwrap gives the cause: one of the errors above, possibly wrapping more detail.
func (e *VerifyError) Unwrap() error { return e.Err }

// MeshReason is the mesh's word for it.
func (e *VerifyError) MeshReason() mesh.Reason {
	var id *IdentityError
	if errors.As(e.Err, &id) || errors.Is(e.Err, ErrTrustDomain) || errors.Is(e.Err, ErrNotWorkload) {
		return mesh.ReasonPeerIdentity
	}
	return mesh.ReasonTLS
}

// verifier decides about a peer, after each handshake and each resumption (tls.Config.VerifyConnection).
type verifier struct {
	roots       *x509.CertPool
	now         func() time.Time
	usage       x509.ExtKeyUsage
	trustDomain string        // the peer's must be this; empty: any, and no SPIFFE ID is needed
	want        mesh.Identity // zero: anybody
	alpn        []string
}

func (v *verifier) verify(cs tls.ConnectionState) error {
	if err := v.check(&cs); err != nil {
		return &VerifyError{err}
	}
	return nil
}

func (v *verifier) check(cs *tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return ErrNoCertificate
	}
	peer := cs.PeerCertificates[0]
	if err := v.chain(cs.PeerCertificates); err != nil {
		return err
	}
	if v.trustDomain != "" {
		id, err := identityOf(peer)
		if err != nil {
			return err
		}
		if id.TrustDomain != v.trustDomain {
			return fmt.Errorf("%w: %s, ours is %s", ErrTrustDomain, id, v.trustDomain)
		}
		if !v.want.IsZero() && id != v.want {
			return &IdentityError{Got: id, Want: v.want}
		}
	}
	if len(v.alpn) > 0 && !slices.Contains(v.alpn, cs.NegotiatedProtocol) {
		return ErrProtocol
	}
	return nil
}

// maxChain is how many certificates a peer may send. Each may cost the check of a signature, by a key of its choice.
const maxChain = 8

// chain checks signatures, validity and use.
func (v *verifier) chain(certs []*x509.Certificate) error {
	if len(certs) > maxChain {
		return fmt.Errorf("%w: a chain of %d certificates, more than %d", ErrUntrusted, len(certs), maxChain)
	}
	opts := x509.VerifyOptions{Roots: v.roots, Intermediates: x509.NewCertPool(), CurrentTime: v.now(), KeyUsages: []x509.ExtKeyUsage{v.usage}}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := certs[0].Verify(opts)
	if err == nil {
		return nil
	}
	var inv x509.CertificateInvalidError
	if errors.As(err, &inv) && inv.Reason == x509.Expired {
		return fmt.Errorf("%w: %w", ErrExpired, err)
	}
	return fmt.Errorf("%w: %w", ErrUntrusted, err)
}

// identityOf reads the one identity of a workload's certificate (X509-SVID, sections 2, 4.1 and 4.3).
func identityOf(c *x509.Certificate) (mesh.Identity, error) {
	switch {
	case len(c.URIs) != 1:
		return mesh.Identity{}, fmt.Errorf("%w: it has %d URIs", ErrNotWorkload, len(c.URIs))
	case c.IsCA || c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return mesh.Identity{}, fmt.Errorf("%w: it is an authority's", ErrNotWorkload)
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return mesh.Identity{}, fmt.Errorf("%w: it is not for signatures", ErrNotWorkload)
	}
	id, err := mesh.ParseIdentity(c.URIs[0].String())
	if err != nil {
		return mesh.Identity{}, fmt.Errorf("%w: %w", ErrNotWorkload, err)
	}
	return id, nil
}

// PeerIdentity is whom a finished handshake has authenticated.
func PeerIdentity(cs *tls.ConnectionState) (mesh.Identity, error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return mesh.Identity{}, ErrNoCertificate
	}
	return identityOf(cs.PeerCertificates[0])
}
