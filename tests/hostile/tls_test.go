package hostile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificate writes a certificate for 127.0.0.1 and its key into files; pool trusts it.
func certificate(t testing.TB) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key, pool
}

// hello is what a TLS client says first.
func hello() []byte {
	a, b := net.Pipe()
	defer a.Close()
	go func() { _ = tls.Client(b, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
	p := make([]byte, 16<<10)
	n, _ := a.Read(p)
	return p[:n]
}

// from connects from a loopback address.
func from(ip, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: patience}
	return d.Dial("tcp", addr)
}

// handshake is an attack on the TLS port: n connections from each of the addresses 127.0.1.1, 127.0.1.2 ...
type handshake struct {
	name    string
	sources int
	n       int
	first   []byte
	leave   bool // at once
}

func handshakes() []handshake {
	h := hello()
	return []handshake{
		{name: "silent", sources: 1, n: 1000},
		{name: "half a hello", sources: 1, n: 1000, first: h[:len(h)/2]},
		{name: "half-open from one address", sources: 1, n: 1000, first: h},
		{name: "half-open from many addresses", sources: 20, n: 80, first: h},
		{name: "no TLS", sources: 1, n: 1000, first: []byte("GET / HTTP/1.1\r\nHost: app\r\n\r\n"), leave: true},
		{name: "hellos and no more", sources: 4, n: 300, first: h, leave: true},
		{name: "a hello that is too long", sources: 1, n: 500, first: append([]byte{0x16, 3, 1, 0xff, 0xff}, bytes.Repeat([]byte{'x'}, 10000)...), leave: true},
	}
}

// TestHandshakes: clients that shake hands as they should do so while others do not.
func TestHandshakes(t *testing.T) {
	cert, key, pool := certificate(t)
	for _, a := range handshakes() {
		t.Run(a.name, func(t *testing.T) {
			l := to(serve(t), "detect")
			l["tls"] = map[string]string{"cert": cert, "key": key}
			p := start(t, l, to(serve(t), "detect"))
			b := watch(t, p.addrs[1]) // who needs no handshake is not concerned
			defer b.stop()
			for i := range a.sources {
				for range a.n {
					c, err := from(fmt.Sprintf("127.0.1.%d", 1+i), p.addrs[0])
					if err != nil {
						t.Fatal(err)
					}
					if !a.leave {
						defer c.Close()
					}
					if _, err := c.Write(a.first); err != nil {
						t.Fatal(err)
					}
					if a.leave {
						c.Close()
					}
				}
			}
			for i := range 5 { // the first of them at an address that attacks, too
				if err := shake(fmt.Sprintf("127.0.1.%d", 1+100*i/4), p.addrs[0], pool); err != nil {
					t.Errorf("a good handshake: %v", err)
				}
			}
			if most := p.memory(); most > 96 {
				t.Errorf("the proxy has %.0f MiB of memory", most)
			}
		})
	}
}

// shake is a client that does as it should. The proxy ends a handshake that takes 10 s.
func shake(ip, addr string, pool *x509.CertPool) error {
	c, err := from(ip, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	tc := tls.Client(c, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", NextProtos: []string{"http/1.1"}})
	if _, err := io.WriteString(tc, "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	b, err := io.ReadAll(tc)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(b, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("answer %.50q, %w", b, err)
	}
	return nil
}

// TestTinyRecords: a client that puts every byte into a record of its own is served, and does not slow down others.
func TestTinyRecords(t *testing.T) {
	cert, key, pool := certificate(t)
	l := to(serve(t), "detect")
	l["tls"] = map[string]string{"cert": cert, "key": key}
	p := start(t, l, to(serve(t), "detect"))
	b := watch(t, p.addrs[1])
	defer b.stop()
	c, err := tls.Dial("tcp", p.addrs[0], &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	const size = 50000
	body := fmt.Sprintf("POST /upload HTTP/1.1\r\nHost: app\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%0*d", size, size, 0)
	for i := range len(body) {
		if _, err := io.WriteString(c, body[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := io.ReadAll(c); err != nil || !bytes.Contains(got, []byte("\r\n\r\n50000")) {
		t.Errorf("answer %.200q, %v", got, err)
	}
}
