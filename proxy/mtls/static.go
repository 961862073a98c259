package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"conduit.io/conduit/mesh"
)

// Files are a configuration's PEM files. They are read once.
type Files struct {
	Cert string // chain, leaf first; a client may do without
	Key  string
	CA   string // roots; a server without asks for no client certificate
	// ServerID is whom a client expects (a SPIFFE ID); empty: anybody whom a root vouches for.
	ServerID string
	// ALPN are the protocols to offer, best first; empty: no negotiation.
	ALPN []string
}

// Server is the server's configuration.
func (f *Files) Server() (*tls.Config, error) {
	if f.Cert == "" || f.Key == "" {
		return nil, errors.New("tls: a listener needs cert and key")
	}
	c, v, err := f.load(x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	if v != nil {
		c.ClientAuth = tls.RequestClientCert
		c.VerifyConnection = v.verify
	}
	return c, nil
}

// Client is the client's configuration.
func (f *Files) Client() (*tls.Config, error) {
	if f.CA == "" {
		return nil, errors.New("upstream_tls: ca is needed to verify the server")
	}
	c, v, err := f.load(x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, err
	}
	if f.ServerID != "" {
		if v.want, err = mesh.ParseIdentity(f.ServerID); err != nil {
			return nil, fmt.Errorf("upstream_tls: server_id: %w", err)
		}
		v.trustDomain = v.want.TrustDomain
	}
	v.alpn = f.ALPN
	c.InsecureSkipVerify = true // VerifyConnection verifies
	c.VerifyConnection = v.verify
	c.ClientSessionCache = tls.NewLRUClientSessionCache(maxSessions)
	return c, nil
}

// load reads the files; the verifier is nil without CA.
func (f *Files) load(usage x509.ExtKeyUsage) (*tls.Config, *verifier, error) {
	c := common(time.Now)
	c.NextProtos = f.ALPN
	if f.Cert != "" {
		cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, nil, fmt.Errorf("tls: read certificate and key: %w", err)
		}
		setCertificate(c, &cert)
	}
	if f.CA == "" {
		return c, nil, nil
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, nil, fmt.Errorf("tls: read ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("tls: read ca: %s has no PEM certificate", f.CA)
	}
	return c, &verifier{roots: roots, now: time.Now, usage: usage}, nil
}
