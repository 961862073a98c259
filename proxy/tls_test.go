package proxy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// authority signs certificates into files.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	ca   string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.key = newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	a.ca = a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// issue writes a certificate and key for spiffe://test/ns/app/sa/NAME, and gives them as a configuration.
func (a *authority) issue(name string) config {
	a.t.Helper()
	key := newKey(a.t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "test", Path: "/ns/app/sa/" + name}}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return config{"cert": a.write(name+".pem", "CERTIFICATE", der), "key": a.write(name+".key", "PRIVATE KEY", pk), "ca": a.ca}
}

// chain is a client's proxy and a server's, with mTLS in between.
func chain(t *testing.T, up, protocol, serverID string) (addr string, client, server *process) {
	t.Helper()
	a := newAuthority(t)
	sl := proxyTo(up, protocol)
	sl["tls"] = a.issue("server")
	server = startProxy(t, config{"listeners": []any{sl}, "admin": "127.0.0.1:0"})
	cl := proxyTo(server.addrs[0], protocol)
	ut := a.issue("client")
	ut["server_id"] = serverID
	cl["upstream_tls"] = ut
	client = startProxy(t, config{"listeners": []any{cl}, "admin": "127.0.0.1:0"})
	return client.addrs[0], client, server
}

const serverID = "spiffe://test/ns/app/sa/server"

func TestChainHTTP(t *testing.T) {
	up := serveHTTP(t, http.HandlerFunc(mirror))
	addr, _, _ := chain(t, up, "detect", serverID)
	body := bytes.Repeat([]byte("0123456789"), 30000)
	for _, h2 := range []bool{false, true} {
		for i := 1; i <= 10; i++ {
			exchangeBody(t, client(t, h2), addr, i, body[:i*len(body)/10], "HTTP/2.0") // between proxies and on: HTTP/2
		}
	}
}

func TestChainGRPC(t *testing.T) {
	addr, _, _ := chain(t, serveGRPC(t), "detect", serverID)
	checkGRPC(t, dialGRPC(t, addr))
}

func TestChainOpaque(t *testing.T) {
	up := serveTCP(t, func(c *net.TCPConn) {
		io.WriteString(c, "hello\n")
		io.Copy(c, c)
	})
	addr, _, _ := chain(t, up, "opaque", serverID)
	c := dial(t, addr)
	sent := bytes.Repeat([]byte("abcdefgh"), 1<<20)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "hello\n"+string(sent) {
		t.Errorf("%d bytes of %d, %v", len(got), len(sent)+6, err)
	}
}

func TestChainWrongServer(t *testing.T) {
	up := serveHTTP(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the request reached the server") }))
	addr, cl, _ := chain(t, up, "http1", "spiffe://test/ns/app/sa/other")
	res, err := client(t, false).Get("http://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 503 || res.Header.Get("Conduit-Reason") != "peer-identity" {
		t.Errorf("status %d, reason %q", res.StatusCode, res.Header.Get("Conduit-Reason"))
	}
	if m := metrics(t, cl); !strings.Contains(m, `conduit_proxy_handshakes_failed_total{reason="peer-identity"} 1`) {
		t.Errorf("metrics: %s", grep(m, "handshakes"))
	}
}

// A server that refuses the proxy's certificate says so only after the handshake; the client hears the reason all the same.
func TestChainWrongClient(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	sl := proxyTo(serveHTTP(t, http.HandlerFunc(mirror)), "detect")
	sl["tls"] = a.issue("server")
	server := startProxy(t, config{"listeners": []any{sl}})
	for _, protocol := range []string{"http1", "http2"} {
		cl := proxyTo(server.addrs[0], protocol)
		ut := stranger.issue("client")
		ut["ca"], ut["server_id"] = a.ca, serverID
		cl["upstream_tls"] = ut
		p := startProxy(t, config{"listeners": []any{cl}})
		res, err := client(t, protocol == "http2").Get("http://" + p.addrs[0] + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode/100 != 5 || res.Header.Get("Conduit-Reason") != "tls-failed" || !strings.Contains(string(body), "certificate") {
			t.Errorf("%s: status %d, reason %q: %s", protocol, res.StatusCode, res.Header.Get("Conduit-Reason"), body)
		}
	}
}

func TestServerDemandsCertificate(t *testing.T) {
	a := newAuthority(t)
	l := proxyTo(serveHTTP(t, http.HandlerFunc(mirror)), "detect")
	l["tls"] = a.issue("server")
	p := startProxy(t, config{"listeners": []any{l}, "admin": "127.0.0.1:0"})
	stranger := newAuthority(t)
	pairs := map[string]config{"none": nil, "other authority": stranger.issue("client")}
	for name, files := range pairs {
		cfg := &tls.Config{InsecureSkipVerify: true}
		if files != nil {
			pair, err := tls.LoadX509KeyPair(files["cert"].(string), files["key"].(string))
			if err != nil {
				t.Fatal(err)
			}
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		c := tls.Client(dial(t, p.addrs[0]), cfg)
		c.Handshake() // in TLS 1.3 the client learns of its refusal only when it reads
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("%s: was served", name)
		}
	}
	// A client may hear of its refusal before the proxy has counted it.
	for deadline := time.Now().Add(5 * time.Second); ; {
		m := metrics(t, p)
		if strings.Contains(m, `conduit_proxy_handshakes_failed_total{reason="tls-failed"} 2`) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("metrics: %s", grep(m, "handshakes"))
		}
	}
}

// A certificate that is not accepted is counted each time, at both ends, and is a warning at both ends, once.
func TestRefusedCertificates(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	for name, c := range map[string]struct{ server, client config }{
		"the server's": {stranger.issue("server"), a.issue("client")},
		"the client's": {a.issue("server"), stranger.issue("client")},
	} {
		c.server["ca"], c.client["ca"], c.client["server_id"] = a.ca, a.ca, serverID
		sl := proxyTo(serveHTTP(t, http.HandlerFunc(mirror)), "detect")
		sl["tls"] = c.server
		server := startProxy(t, config{"listeners": []any{sl}, "admin": "127.0.0.1:0"})
		cl := proxyTo(server.addrs[0], "http2")
		cl["upstream_tls"] = c.client
		near := startProxy(t, config{"listeners": []any{cl}, "admin": "127.0.0.1:0"})
		const requests = 3
		for range requests {
			res, err := client(t, true).Get("http://" + near.addrs[0] + "/")
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode/100 != 5 || res.Header.Get("Conduit-Reason") != "tls-failed" {
				t.Errorf("%s: status %d, reason %q", name, res.StatusCode, res.Header.Get("Conduit-Reason"))
			}
		}
		for _, p := range []*process{near, server} {
			want := `conduit_proxy_handshakes_failed_total{reason="tls-failed"} `
			m := metrics(t, p)
			tick := time.NewTicker(50 * time.Millisecond)
			for end := time.Now().Add(5 * time.Second); !counted(m, want, requests) && time.Now().Before(end); m = metrics(t, p) {
				<-tick.C
			}
			tick.Stop()
			if !counted(m, want, requests) {
				t.Errorf("%s: metrics: %s", name, grep(m, "handshakes"))
			}
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			warned := 0
			for l := range p.lines {
				if strings.Contains(l, "level=WARN") && strings.Contains(l, "handshake failed") && strings.Contains(l, "reason=tls-failed") {
					warned++
				}
			}
			if warned != 1 {
				t.Errorf("%s: %d warnings", name, warned)
			}
		}
	}
}

// counted reports whether the sample name is n at least.
func counted(text, name string, n int) bool {
	_, rest, _ := strings.Cut(text, name)
	v, _, _ := strings.Cut(rest, "\n")
	got, err := strconv.Atoi(v)
	return err == nil && got >= n
}

func metrics(t *testing.T, p *process) string {
	t.Helper()
	res, err := client(t, false).Get("http://" + p.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
