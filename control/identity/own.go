package identity

import (
	"context"
	"crypto/tls"
	"errors"

	certs "conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"
)

// ControllerAccount is the controller's ServiceAccount, and AgentAccount the agents'. Both are in the controller's namespace.
const (
	ControllerAccount = "conduit-controller"
	AgentAccount      = "conduit-agent"
)

// ownIssuer issues the controller's own certificate.
type ownIssuer struct{ s *Service }

// Certify is certs.Issuer's.
func (o ownIssuer) Certify(_ context.Context, ids []mesh.Identity) certs.Batch {
	b := certs.Batch{Issued: make([]certs.Issued, len(ids))}
	signer, err := o.s.authority.signer()
	for i, id := range ids {
		if err != nil {
			b.Issued[i].Err = err
			continue
		}
		b.Issued[i].Leaf, b.Issued[i].Err = signer.Issue(id, o.s.cfg.DNSNames...)
	}
	return b
}

// Watch is certs.Issuer's. News of the bundle or of the signer make the Keeper try again what has failed.
func (o ownIssuer) Watch(ctx context.Context, roots func([]byte), _ func(error)) {
	for {
		b, changed := o.s.authority.trust()
		if b != nil {
			roots(b.pem())
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// TLSConfig is for the controller's API: TLS 1.3, with a certificate for the controller's SPIFFE ID and its DNS names,
// which follows the issuer. Callers authenticate by token, and not by certificate.
func (s *Service) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		Time:       s.cfg.Now,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.certificate()
		},
	}
}

func (s *Service) certificate() (*tls.Certificate, error) {
	leaves := s.own.Leaves()
	if len(leaves) == 0 {
		return nil, errors.New("the controller has no certificate yet")
	}
	if have := s.parsed.Load(); have != nil && have.leaf == leaves[0] {
		return have.cert, nil
	}
	cert, err := tls.X509KeyPair(leaves[0].Chain, leaves[0].Key)
	if err != nil {
		return nil, errors.New("the controller's certificate cannot be used")
	}
	s.parsed.Store(&parsed{leaves[0], &cert})
	return &cert, nil
}

// parsed is the controller's certificate in the form that handshakes need.
type parsed struct {
	leaf *certs.Leaf
	cert *tls.Certificate
}
