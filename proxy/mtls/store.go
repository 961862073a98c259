// Package mtls makes TLS configurations by which proxies authenticate each other as SPIFFE identities
// (SPIFFE X509-SVID): TLS 1.3 only, certificates on both sides, exactly one identity each.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

const (
	// maxSessions bounds the sessions kept for resumption towards one identity: one for each of its addresses.
	maxSessions = 16
	// maxPeers bounds the client configurations of one identity, and with them its sessions.
	maxPeers = 256
)

// Store holds the roots and the leaf certificates of one node. It is safe for concurrent use. What it hands out stays
// valid: connections made with it go on when certificates are replaced.
type Store struct {
	now func() time.Time

	mu     sync.Mutex
	roots  *x509.CertPool
	leaves map[mesh.Identity]*leaf
}

// leaf is one identity's certificate with the configurations made of it. It is replaced as a whole, and with it
// every session that could be resumed: none outlives a change of the certificate or of the roots.
type leaf struct {
	cert   *tls.Certificate
	roots  *x509.CertPool
	server *tls.Config
	client map[mesh.Identity]*tls.Config
}

// New makes an empty Store. now is the clock for the expiry of certificates; nil means time.Now.
func New(now func() time.Time) *Store {
	if now == nil {
		now = time.Now
	}
	return &Store{now: now, leaves: map[mesh.Identity]*leaf{}}
}

// Set adds or replaces certificates, and replaces the roots unless c has none. It changes all or nothing. No error says
// anything of a key.
func (s *Store) Set(c node.Certificates) error {
	var roots *x509.CertPool
	if len(c.Roots) > 0 {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(c.Roots) {
			return errors.New("read roots: no PEM certificate in the bundle")
		}
	}
	fresh := make(map[mesh.Identity]*tls.Certificate, len(c.Leaves))
	for i := range c.Leaves {
		cert, err := parseLeaf(&c.Leaves[i])
		if err != nil {
			return err
		}
		fresh[c.Leaves[i].Identity] = cert
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if roots == nil && s.roots == nil {
		return errors.New("set certificates: no roots")
	}
	if roots != nil && (s.roots == nil || !roots.Equal(s.roots)) {
		s.roots = roots
		for id, l := range s.leaves {
			s.leaves[id] = &leaf{cert: l.cert, roots: roots}
		}
	}
	for id, cert := range fresh {
		s.leaves[id] = &leaf{cert: cert, roots: s.roots}
	}
	return nil
}

// Remove forgets an identity's certificate.
func (s *Store) Remove(id mesh.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leaves, id)
}

// parseLeaf checks that chain and key belong together and are what they are said to be.
func parseLeaf(l *node.Leaf) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(l.Chain, l.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate of %s: %w", l.Identity, err)
	}
	id, err := identityOf(cert.Leaf)
	if err != nil {
		return nil, fmt.Errorf("read certificate of %s: %w", l.Identity, err)
	}
	if id != l.Identity {
		return nil, fmt.Errorf("read certificate of %s: %w", l.Identity, &IdentityError{Got: id, Want: l.Identity})
	}
	return &cert, nil
}

// ServerConfig is for connections to the mesh port of a pod with identity id. The client must present a certificate
// of id's trust domain; who it is, PeerIdentity says. ErrNoLeaf is wrapped when id has no certificate.
func (s *Store) ServerConfig(id mesh.Identity) (*tls.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leaves[id]
	if l == nil {
		return nil, &NoLeafError{ID: id}
	}
	if l.server == nil {
		v := verifier{roots: l.roots, now: s.now, usage: x509.ExtKeyUsageClientAuth, trustDomain: id.TrustDomain,
			alpn: []string{mesh.ALPNConduit, mesh.ALPNHBONE}}
		l.server = l.base(s.now, &v)
		// Asked for here and demanded by the verifier, whose error says that there was none.
		l.server.ClientAuth = tls.RequestClientCert
	}
	return l.server, nil
}

// ClientConfig is for connections of a pod with identity own to a mesh port where nobody but expect may answer.
// ErrNoLeaf is wrapped when own has no certificate.
//
// Sessions are resumed only between the same two identities, under the same certificate and roots, and towards the
// same address; the peer's certificate is verified again each time.
func (s *Store) ClientConfig(own, expect mesh.Identity) (*tls.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leaves[own]
	if l == nil {
		return nil, &NoLeafError{ID: own}
	}
	if c := l.client[expect]; c != nil {
		return c, nil
	}
	v := verifier{roots: l.roots, now: s.now, usage: x509.ExtKeyUsageServerAuth, trustDomain: own.TrustDomain,
		alpn: []string{mesh.ALPNConduit}, want: expect}
	c := l.base(s.now, &v)
	// The name of a SPIFFE certificate is a URI, which crypto/tls cannot be asked for: VerifyConnection does the
	// whole verification instead.
	c.InsecureSkipVerify = true
	c.ClientSessionCache = tls.NewLRUClientSessionCache(maxSessions)
	if l.client == nil {
		l.client = map[mesh.Identity]*tls.Config{}
	}
	for old := range l.client { // any one: it is merely made anew when it is wanted again
		if len(l.client) < maxPeers {
			break
		}
		delete(l.client, old)
	}
	l.client[expect] = c
	return c, nil
}

// base is what both roles have in common.
func (l *leaf) base(now func() time.Time, v *verifier) *tls.Config {
	c := common(now)
	c.NextProtos = v.alpn
	c.VerifyConnection = v.verify
	setCertificate(c, l.cert)
	return c
}

// common are the settings of every session of the proxy.
func common(now func() time.Time) *tls.Config {
	return &tls.Config{
		Time:             now,
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519},
		// Small first records help browsers; here they would only cost system calls.
		DynamicRecordSizingDisabled: true,
	}
}

// setCertificate makes c present cert whatever the peer says it would like: the mesh has one.
func setCertificate(c *tls.Config, cert *tls.Certificate) {
	c.Certificates = []tls.Certificate{*cert}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
}
