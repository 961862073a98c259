// Package identity issues the X.509 certificates that workloads prove themselves with (SPIFFE X509-SVID): a
// certificate authority in a directory that agents share, leaves for service accounts, and their renewal.
package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"conduit.io/conduit/mesh"

	"golang.org/x/sys/unix"
)

const (
	// LeafLife is how long a leaf is valid.
	LeafLife = 24 * time.Hour
	// RootLife is how long a self-made root is valid.
	RootLife = 10 * 365 * 24 * time.Hour

	certFile = "ca.crt"
	keyFile  = "ca.key"
	lockFile = ".lock"

	// backdate forgives clocks that run behind the issuer's.
	backdate = 5 * time.Minute
)

var (
	// ErrBroken is wrapped by OpenCA when the directory holds files that are no usable authority.
	ErrBroken = errors.New("not a usable certificate authority")
	// ErrForeign is wrapped by OpenCA when the directory's authority is that of another trust domain.
	ErrForeign = errors.New("certificate authority of another trust domain")
	// ErrExpired is wrapped by OpenCA and Issue when the signing certificate is not valid now.
	ErrExpired = errors.New("certificate authority expired")
)

// CA signs leaves. It is immutable, and safe for concurrent use.
type CA struct {
	trustDomain string
	now         func() time.Time
	cert        *x509.Certificate
	key         *ecdsa.PrivateKey
	roots       []byte
}

// OpenCA opens the authority in dir (ca.crt and ca.key), and makes one if the directory has none. Several processes
// may call it at once: the first makes the authority, the others find it. ca.crt may hold several roots: all of them
// are trusted, and the one that belongs to ca.key signs. now is the clock; nil means time.Now.
func OpenCA(dir, trustDomain string, now func() time.Time) (*CA, error) {
	if now == nil {
		now = time.Now
	}
	if !mesh.ValidTrustDomain(trustDomain) {
		return nil, fmt.Errorf("open certificate authority: bad trust domain %q", trustDomain)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	defer unlock()
	certPEM, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	keyPEM, keyErr := os.ReadFile(filepath.Join(dir, keyFile))
	if keyErr != nil && !errors.Is(keyErr, os.ErrNotExist) {
		return nil, fmt.Errorf("open certificate authority: %w", keyErr)
	}
	switch {
	case err != nil && keyErr != nil:
		if certPEM, keyPEM, err = create(dir, trustDomain, now()); err != nil {
			return nil, fmt.Errorf("create certificate authority in %s: %w", dir, err)
		}
	case err != nil:
		return nil, broken(dir, "%s is there, but %s is missing; restore it, or remove both", keyFile, certFile)
	case keyErr != nil:
		return nil, broken(dir, "%s is there, but %s is missing; restore it, or remove both", certFile, keyFile)
	}
	return parse(dir, trustDomain, certPEM, keyPEM, now)
}

func broken(dir, format string, args ...any) error {
	return fmt.Errorf("open certificate authority in %s: %s: %w", dir, fmt.Sprintf(format, args...), ErrBroken)
}

// lockDir serialises creation among processes; the lock goes with the descriptor, also when its holder is killed.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

func create(dir, trustDomain string, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	keyID, err := subjectKeyID(&key.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Conduit"}, CommonName: "root of " + trustDomain},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(RootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign, // X509-SVID 4.3
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		SubjectKeyId:          keyID,
		// X509-SVID 3.1: a signing certificate's SPIFFE ID has no path. X509-SVID 4.2: URI name constraints keep
		// the authority from speaking for other trust domains.
		URIs:                        []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		PermittedURIDomains:         []string{trustDomain},
		PermittedDNSDomainsCritical: true, // the whole name constraints extension is critical
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, nil, err
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	// The key goes first: a crash between the two leaves a key alone, which the next opener reports.
	if err := writeAtomic(filepath.Join(dir, keyFile), keyPEM, 0o600); err != nil {
		return nil, nil, err
	}
	if err := writeAtomic(filepath.Join(dir, certFile), certPEM, 0o644); err != nil {
		return nil, nil, errors.Join(err, os.Remove(filepath.Join(dir, keyFile)))
	}
	return certPEM, keyPEM, nil
}

func parse(dir, trustDomain string, certPEM, keyPEM []byte, now func() time.Time) (*CA, error) {
	key, err := decodeKey(keyPEM)
	if err != nil {
		return nil, broken(dir, "%s: %v", keyFile, err)
	}
	certs, err := decodeCerts(certPEM)
	if err != nil {
		return nil, broken(dir, "%s: %v", certFile, err)
	}
	ca := &CA{trustDomain: trustDomain, now: now, key: key}
	var roots bytes.Buffer
	for i, c := range certs {
		if !c.IsCA || !c.BasicConstraintsValid {
			return nil, broken(dir, "%s: certificate %d (%s) is no authority", certFile, i+1, c.Subject)
		}
		if key.PublicKey.Equal(c.PublicKey) && ca.cert == nil {
			ca.cert = c
		}
		if err := pem.Encode(&roots, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return nil, broken(dir, "%s: %v", certFile, err)
		}
	}
	if ca.cert == nil {
		return nil, broken(dir, "no certificate in %s belongs to %s", certFile, keyFile)
	}
	ca.roots = roots.Bytes()
	if err := ca.checkDomain(dir); err != nil {
		return nil, err
	}
	return ca, ca.checkTime()
}

func (ca *CA) checkDomain(dir string) error {
	for _, u := range ca.cert.URIs {
		if u.Scheme == "spiffe" && u.Host != ca.trustDomain {
			return fmt.Errorf("open certificate authority in %s: it speaks for trust domain %q, not for %q; "+
				"use another directory, or that trust domain: %w", dir, u.Host, ca.trustDomain, ErrForeign)
		}
	}
	return nil
}

func (ca *CA) checkTime() error {
	switch now := ca.now(); {
	case now.After(ca.cert.NotAfter):
		return fmt.Errorf("certificate authority %s ended at %s; put a new root into its directory: %w",
			ca.cert.Subject, ca.cert.NotAfter.Format(time.RFC3339), ErrExpired)
	case now.Before(ca.cert.NotBefore):
		return fmt.Errorf("certificate authority %s begins at %s; is this machine's clock right?: %w",
			ca.cert.Subject, ca.cert.NotBefore.Format(time.RFC3339), ErrExpired)
	}
	return nil
}

// TrustDomain is the trust domain that the authority speaks for.
func (ca *CA) TrustDomain() string { return ca.trustDomain }

// Roots is the trust bundle, a set of PEM certificates. The caller must not change it.
func (ca *CA) Roots() []byte { return ca.roots }

// Leaf is a certificate with its key. It holds a secret: never log it.
type Leaf struct {
	Identity  mesh.Identity
	Chain     []byte // PEM, leaf first
	Key       []byte // PEM, PKCS #8
	NotBefore time.Time
	NotAfter  time.Time
}

// Issue makes a key and a leaf for id, which must be of the authority's trust domain.
func (ca *CA) Issue(id mesh.Identity) (*Leaf, error) {
	if _, err := mesh.ParseIdentity(id.String()); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	if id.TrustDomain != ca.trustDomain {
		return nil, fmt.Errorf("issue certificate for %s: not of trust domain %q: %w", id, ca.trustDomain, ErrForeign)
	}
	if err := ca.checkTime(); err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	now := ca.now().Truncate(time.Second)
	end := now.Add(LeafLife)
	if end.After(ca.cert.NotAfter) {
		end = ca.cert.NotAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature, // X509-SVID 4.3
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.URL()}, // X509-SVID 2: exactly one URI SAN
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	return &Leaf{
		Identity: id, Key: keyPEM, NotBefore: now, NotAfter: end,
		Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}, nil
}

func newSerial() (*big.Int, error) {
	// RFC 5280, 4.1.2.2: positive, at most 20 octets.
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func subjectKeyID(pub *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der) // RFC 7093, method 4: any hash of the SubjectPublicKeyInfo
	return sum[:20], nil
}
