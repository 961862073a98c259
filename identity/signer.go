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
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"time"

	"conduit.io/conduit/mesh"
)

const (
	// LeafLife is how long a leaf is valid, unless its signer is told otherwise.
	LeafLife = 24 * time.Hour

	// backdate forgives clocks that run behind the issuer's.
	backdate = 5 * time.Minute
)

var (
	// ErrBroken is wrapped when certificates and key are no usable authority.
	ErrBroken = errors.New("not a usable certificate authority")
	// ErrForeign is wrapped when an authority or an identity is that of another trust domain.
	ErrForeign = errors.New("certificate authority of another trust domain")
	// ErrExpired is wrapped when the signing certificate, or one above it, is not valid now.
	ErrExpired = errors.New("certificate authority expired")
)

// Signer signs leaves with the key of one authority. It is immutable, and safe for concurrent use.
type Signer struct {
	trustDomain string
	now         func() time.Time
	leafLife    time.Duration
	cert        *x509.Certificate
	chain       []byte // PEM: what a peer needs between the leaf and its roots
	key         crypto.Signer
	roots       []*x509.Certificate // all of the authority's, not only the one above cert
	root        *x509.Certificate   // the one above cert; cert itself if it is trusted
	notAfter    time.Time           // of cert and everything above it
}

// SignerConfig is what a Signer is made of.
type SignerConfig struct {
	TrustDomain string
	Chain       []byte           // PEM: the signing certificate, then those between it and a root
	Key         []byte           // PEM, not encrypted: PKCS #8, or the older forms of EC and RSA keys. It is a secret
	Roots       []byte           // PEM bundle; empty if the signing certificate is itself the root
	LeafLife    time.Duration    // 0 means LeafLife
	Now         func() time.Time // the clock; nil means time.Now
}

// NewSigner makes a Signer that is known to work: a leaf that it signs now is accepted under its roots. Its error wraps
// ErrBroken, ErrForeign or ErrExpired, says what is wrong, and nothing of the key.
func NewSigner(c SignerConfig) (*Signer, error) {
	if !mesh.ValidTrustDomain(c.TrustDomain) {
		return nil, fmt.Errorf("bad trust domain %q: %w", c.TrustDomain, ErrForeign)
	}
	s := &Signer{trustDomain: c.TrustDomain, now: c.Now, leafLife: c.LeafLife}
	if s.now == nil {
		s.now = time.Now
	}
	if s.leafLife <= 0 {
		s.leafLife = LeafLife
	}
	var err error
	if s.key, err = decodeKey(c.Key); err != nil {
		return nil, fmt.Errorf("key: %v: %w", err, ErrBroken)
	}
	chain, err := decodeCerts(c.Chain)
	if err != nil {
		return nil, fmt.Errorf("certificate: %v: %w", err, ErrBroken)
	}
	s.cert, s.roots = chain[0], chain[:1]
	if len(c.Roots) > 0 {
		if s.roots, err = decodeCerts(c.Roots); err != nil {
			return nil, fmt.Errorf("roots: %v: %w", err, ErrBroken)
		}
	} else if !bytes.Equal(s.cert.RawIssuer, s.cert.RawSubject) {
		return nil, fmt.Errorf("%s is not its own root, and no roots are given: %w", s.cert.Subject, ErrBroken)
	}
	if err := s.check(chain); err != nil {
		return nil, err
	}
	return s, nil
}

// check makes sure that what s signs will be believed.
func (s *Signer) check(chain []*x509.Certificate) error {
	if !sameKey(s.key.Public(), s.cert.PublicKey) {
		return fmt.Errorf("the key does not belong to the certificate of %s: %w", s.cert.Subject, ErrBroken)
	}
	for i, c := range append(chain[:len(chain):len(chain)], s.roots...) {
		if !c.IsCA || !c.BasicConstraintsValid {
			return fmt.Errorf("certificate %d (%s) is no authority: %w", i+1, c.Subject, ErrBroken)
		}
	}
	for _, u := range s.cert.URIs {
		if u.Scheme == "spiffe" && u.Host != s.trustDomain {
			return fmt.Errorf("it speaks for trust domain %q, not for %q: %w", u.Host, s.trustDomain, ErrForeign)
		}
	}
	s.notAfter = s.cert.NotAfter
	if err := s.checkTime(); err != nil {
		return err
	}
	return s.try(chain)
}

// try signs a leaf for nobody and verifies it: constraints, lives and signatures of the whole chain, in one go.
func (s *Signer) try(chain []*x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	nobody := mesh.Identity{TrustDomain: s.trustDomain, Namespace: "none", ServiceAccount: "none"}
	der, _, err := s.sign(nobody, &key.PublicKey, nil)
	if err != nil {
		return fmt.Errorf("sign a leaf: %v: %w", err, ErrBroken)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("sign a leaf: %v: %w", err, ErrBroken)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range s.roots {
		roots.AddCert(c)
	}
	for _, c := range chain {
		between.AddCert(c)
	}
	paths, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: s.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err == nil {
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: s.now(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	}
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("a certificate above %s is not valid now: %v: %w", s.cert.Subject, err, ErrExpired)
	case err != nil:
		return fmt.Errorf("what %s signs is not accepted: %v: %w", s.cert.Subject, err, ErrBroken)
	}
	path := slices.MinFunc(paths, func(a, b []*x509.Certificate) int { return len(a) - len(b) })[1:] // without the leaf
	s.root = path[len(path)-1]
	for _, c := range path {
		if c.NotAfter.Before(s.notAfter) {
			s.notAfter = c.NotAfter
		}
	}
	s.chain = encodeCerts(path[:len(path)-1])
	return nil
}

func (s *Signer) checkTime() error {
	switch now := s.now(); {
	case now.After(s.notAfter):
		return fmt.Errorf("certificate authority %s ended at %s; a new one is needed: %w",
			s.cert.Subject, s.notAfter.Format(time.RFC3339), ErrExpired)
	case now.Before(s.cert.NotBefore):
		return fmt.Errorf("certificate authority %s begins at %s; is this machine's clock right?: %w",
			s.cert.Subject, s.cert.NotBefore.Format(time.RFC3339), ErrExpired)
	}
	return nil
}

// TrustDomain is the trust domain that the authority speaks for.
func (s *Signer) TrustDomain() string { return s.trustDomain }

// Certificate is the signing certificate. The caller must not change it.
func (s *Signer) Certificate() *x509.Certificate { return s.cert }

// Root is the root that the signer's leaves are verified with; it is the signing certificate itself if that is trusted.
func (s *Signer) Root() *x509.Certificate { return s.root }

// Roots are all roots of the authority. The caller must not change them.
func (s *Signer) Roots() []*x509.Certificate { return s.roots }

// NotAfter is when the signing certificate ends, or one above it that ends before.
func (s *Signer) NotAfter() time.Time { return s.notAfter }

// Sign certifies that pub is id's, and returns the chain (PEM, leaf first) and its end. The caller has made sure that
// pub is id's, and may want DNS names in the leaf.
func (s *Signer) Sign(id mesh.Identity, pub crypto.PublicKey, dns ...string) (chain []byte, notAfter time.Time, err error) {
	if _, err := mesh.ParseIdentity(id.String()); err != nil {
		return nil, time.Time{}, fmt.Errorf("issue certificate: %w", err)
	}
	if id.TrustDomain != s.trustDomain {
		return nil, time.Time{}, fmt.Errorf("issue certificate for %s: not of trust domain %q: %w", id, s.trustDomain, ErrForeign)
	}
	if err := s.checkTime(); err != nil {
		return nil, time.Time{}, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	der, notAfter, err := s.sign(id, pub, dns)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), s.chain...), notAfter, nil
}

func (s *Signer) sign(id mesh.Identity, pub crypto.PublicKey, dns []string) (der []byte, notAfter time.Time, err error) {
	serial, err := newSerial()
	if err != nil {
		return nil, time.Time{}, err
	}
	now := s.now().Truncate(time.Second)
	notAfter = now.Add(s.leafLife)
	if notAfter.After(s.notAfter) {
		notAfter = s.notAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature, // X509-SVID 4.3
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.URL()}, // X509-SVID 2: exactly one URI SAN
		DNSNames:              dns,
	}
	der, err = x509.CreateCertificate(rand.Reader, tmpl, s.cert, pub, s.key)
	return der, notAfter, err
}

// Issue makes a key and a leaf for id, which must be of the authority's trust domain.
func (s *Signer) Issue(id mesh.Identity, dns ...string) (*Leaf, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	chain, notAfter, err := s.Sign(id, &key.PublicKey, dns...)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	return &Leaf{Identity: id, Key: keyPEM, Chain: chain, NotAfter: notAfter}, nil
}

// Leaf is a certificate with its key. It holds a secret: never log it.
type Leaf struct {
	Identity mesh.Identity
	Chain    []byte // PEM, leaf first
	Key      []byte // PEM, PKCS #8
	NotAfter time.Time
}

func newSerial() (*big.Int, error) {
	// RFC 5280, 4.1.2.2: positive, at most 20 octets.
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// usableKey refuses the keys of authorities that peers would not, or should not, believe.
func usableKey(key any) (crypto.Signer, error) {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P224() {
			return nil, errors.New("ECDSA key on P-224; need P-256 or larger")
		}
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	case *rsa.PrivateKey:
		if k.N.BitLen() < 2048 {
			return nil, fmt.Errorf("RSA key of %d bits; need 2048", k.N.BitLen())
		}
		return k, nil
	}
	return nil, fmt.Errorf("key is a %T; need ECDSA, Ed25519 or RSA", key)
}
