package peers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Certs are PEM files for mutual TLS between two proxies: ECDSA on P-256, as the mesh's own certificates are.
type Certs struct {
	CA                     string
	ClientCert, ClientKey  string
	ServerCert, ServerKey  string
	ClientBoth, ServerBoth string // certificate and key in one file
	ServerID, ServerName   string
}

const trustDomain = "bench.local"

// MakeCerts writes them into dir. They are valid for a day.
func MakeCerts(dir string) (Certs, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Certs{}, fmt.Errorf("make a CA key: %w", err)
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		return Certs{}, fmt.Errorf("make a CA: %w", err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	c := Certs{
		CA: at("ca.pem"), ClientCert: at("client.pem"), ClientKey: at("client.key"), ClientBoth: at("client.both"),
		ServerCert: at("server.pem"), ServerKey: at("server.key"), ServerBoth: at("server.both"),
		ServerID: "spiffe://" + trustDomain + "/ns/bench/sa/server", ServerName: "server." + trustDomain,
	}
	if err := os.WriteFile(c.CA, block("CERTIFICATE", der), 0o600); err != nil {
		return Certs{}, fmt.Errorf("write the CA: %w", err)
	}
	for i, name := range []string{"client", "server"} {
		if err := leaf(ca, key, int64(i+2), name, at(name)); err != nil {
			return Certs{}, fmt.Errorf("make the %s's certificate: %w", name, err)
		}
	}
	return c, nil
}

func leaf(ca *x509.Certificate, caKey *ecdsa.PrivateKey, serial int64, name, path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	id := &url.URL{Scheme: "spiffe", Host: trustDomain, Path: "/ns/bench/sa/" + name}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{id}, DNSNames: []string{name + "." + trustDomain}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, ca, &key.PublicKey, caKey)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert, k := block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8)
	for suffix, content := range map[string][]byte{".pem": cert, ".key": k, ".both": append(append([]byte{}, cert...), k...)} {
		if err := os.WriteFile(path+suffix, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
