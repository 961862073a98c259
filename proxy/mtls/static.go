package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"conduit.io/conduit/mesh"
)

// Files are a configuration's PEM files. They are read once, and refused when they are not valid then.
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

// Ends is when the first certificate of the chain that c presents expires; zero, if it presents none.
func Ends(c *tls.Config) (end time.Time) {
	if c == nil || len(c.Certificates) == 0 {
		return end
	}
	for _, der := range c.Certificates[0].Certificate {
		if x, err := x509.ParseCertificate(der); err == nil && (end.IsZero() || x.NotAfter.Before(end)) {
			end = x.NotAfter
		}
	}
	return end
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
		for _, der := range cert.Certificate {
			x, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, nil, fmt.Errorf("cert %s: %w", f.Cert, err)
			}
			if err := dated(x); err != nil {
				return nil, nil, fmt.Errorf("cert %s %w", f.Cert, err)
			}
		}
		setCertificate(c, &cert)
	}
	if f.CA == "" {
		return c, nil, nil
	}
	roots, err := readRoots(f.CA)
	if err != nil {
		return nil, nil, err
	}
	return c, &verifier{roots: roots, now: time.Now, usage: usage}, nil
}

// readRoots reads PEM certificates, of which one at least must be valid now.
func readRoots(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("tls: read ca: %w", err)
	}
	roots, valid := x509.NewCertPool(), false
	err = fmt.Errorf("tls: read ca: %s has no PEM certificate", file)
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		if b.Type != "CERTIFICATE" {
			continue
		}
		x, e := x509.ParseCertificate(b.Bytes)
		if e != nil {
			continue
		}
		roots.AddCert(x)
		if e := dated(x); e != nil {
			err = fmt.Errorf("ca %s %w", file, e)
			continue
		}
		valid = true
	}
	if !valid {
		return nil, err
	}
	return roots, nil
}

// dated says what is wrong with the validity of x.
func dated(x *x509.Certificate) error {
	const layout = time.DateTime + " MST"
	switch now := time.Now(); {
	case now.After(x.NotAfter):
		return fmt.Errorf("expired on %s, and nobody accepts it; renew it", x.NotAfter.UTC().Format(layout))
	case now.Before(x.NotBefore):
		return fmt.Errorf("is not valid before %s, and nobody accepts it; wait, or set the clock, which says %s",
			x.NotBefore.UTC().Format(layout), now.UTC().Format(layout))
	}
	return nil
}
