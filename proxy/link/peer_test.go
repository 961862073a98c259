package link_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// meshPeer is somebody else's client on the mesh port, made of crypto/tls and x/net's Framer.
type meshPeer struct {
	t   *testing.T
	c   *tls.Conn
	f   *http2.Framer
	enc bytes.Buffer
	h   *hpack.Encoder
}

// dialMesh presents a certificate of ca for account; no certificate if ca is nil.
func dialMesh(t *testing.T, ca *identity.CA, account, alpn string) (*meshPeer, error) {
	t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}, MinVersion: tls.VersionTLS13}
	if ca != nil {
		l, err := ca.Issue(mesh.Identity{TrustDomain: ca.TrustDomain(), Namespace: "shop", ServiceAccount: account})
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(l.Chain, l.Key)
		if err != nil {
			t.Fatal(err)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	p := &meshPeer{t: t, c: tls.Client(dial(t, webMesh), cfg)}
	if err := p.c.Handshake(); err != nil {
		return nil, err
	}
	p.f, p.h = http2.NewFramer(p.c, p.c), hpack.NewEncoder(&p.enc)
	p.f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	io.WriteString(p.c, http2.ClientPreface)
	if err := p.f.WriteSettings(); err != nil {
		return nil, err
	}
	// In TLS 1.3 a refused client learns of it only now.
	_, err := p.f.ReadFrame()
	return p, err
}

// ask opens a stream and gives its response.
func (p *meshPeer) ask(id uint32, end bool, kv ...string) map[string]string {
	p.t.Helper()
	p.enc.Reset()
	for i := 0; i < len(kv); i += 2 {
		p.h.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	if err := p.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.enc.Bytes(), EndHeaders: true, EndStream: end}); err != nil {
		p.t.Fatal(err)
	}
	for {
		f, err := p.f.ReadFrame()
		if err != nil {
			p.t.Fatalf("no answer to %v: %v", kv, err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				got := map[string]string{}
				for _, h := range f.Fields {
					got[h.Name] = h.Value
				}
				return got
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return map[string]string{"reset": f.ErrCode.String()}
			}
		}
	}
}

// data reads n bytes of a stream.
func (p *meshPeer) data(id uint32, n int) string {
	p.t.Helper()
	var b []byte
	for len(b) < n {
		f, err := p.f.ReadFrame()
		if err != nil {
			p.t.Fatal(err)
		}
		if d, ok := f.(*http2.DataFrame); ok && d.StreamID == id {
			b = append(b, d.Data()...)
		}
	}
	return string(b)
}

// Another HBONE implementation reaches an application by CONNECT, and nothing else.
func TestHBONEPeer(t *testing.T) {
	_, n2 := pair(t)
	tcpApp(t, webIP+":5432", func(c *net.TCPConn) {
		io.WriteString(c, "ready ")
		echo(c)
	})
	p, err := dialMesh(t, n2.ca, "stranger", mesh.ALPNHBONE)
	if err != nil {
		t.Fatal(err)
	}
	if r := p.ask(1, false, ":method", "CONNECT", ":authority", webIP+":5432"); r[":status"] != "200" {
		t.Fatalf("%v", r)
	}
	p.f.WriteData(1, false, []byte("hello"))
	if got := p.data(1, 11); got != "ready hello" {
		t.Errorf("%q", got)
	}
	n2.want(`tcp_open_total{direction="inbound",src="shop/stranger",dst="shop/web",protocol="tcp",tls="mtls"} 1`)
	for i, c := range []struct {
		fields []string
		status string
		reason string
	}{
		{[]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x", "conduit-dst", "8080/http1"}, "400", "bad-request"},
		{[]string{":method", "CONNECT", ":authority", "10.0.0.1:5432"}, "403", "not-a-mesh-target"},
		{[]string{":method", "CONNECT", ":authority", "127.0.0.1:22"}, "403", "not-a-mesh-target"},
		{[]string{":method", "CONNECT", ":authority", webMesh}, "403", "not-a-mesh-target"},
		{[]string{":method", "CONNECT", ":authority", "web.shop:80"}, "400", "bad-request"},
		{[]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/", ":authority", "x"}, "", ""},
		{[]string{":method", "CONNECT", ":authority", webIP + ":9"}, "503", "connect-failed"},
	} {
		if r := p.ask(uint32(3+2*i), true, c.fields...); r[":status"] != c.status || r["conduit-reason"] != "" && r["conduit-reason"] != c.reason {
			t.Errorf("%v: %v", c.fields, r)
		}
	}
}

func TestConduitPeer(t *testing.T) {
	_, n2 := pair(t)
	httpApp(t, webIP+":8080", "web")
	p, err := dialMesh(t, n2.ca, "client", mesh.ALPNConduit)
	if err != nil {
		t.Fatal(err)
	}
	get := func(id uint32, dst string) map[string]string {
		f := []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x"}
		if dst != "" {
			f = append(f, "conduit-dst", dst, "conduit-client", "203.0.113.9:1") // a lie: not the peer's address
		}
		return p.ask(id, true, f...)
	}
	for i, c := range []struct{ dst, status, reason string }{
		{"8080/http1", "200", ""}, {"8080/http2", "200", ""}, {"8081/http1", "503", "connect-failed"},
		{"", "400", "bad-request"}, {"8080", "400", "bad-request"}, {"0/http1", "400", "bad-request"},
		{"8080/http3", "400", "bad-request"}, {"70000/http1", "400", "bad-request"}, {"15908/http2", "403", "not-a-mesh-target"},
	} {
		if r := get(uint32(1+2*i), c.dst); r[":status"] != c.status || r["conduit-reason"] != c.reason {
			t.Errorf("%q: %v", c.dst, r)
		}
	}
}

func TestStrangersOnTheMeshPort(t *testing.T) {
	_, n2 := pair(t)
	other, err := identity.OpenCA(t.TempDir(), "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := identity.OpenCA(t.TempDir(), "elsewhere", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, ca := range map[string]*identity.CA{"no certificate": nil, "other authority": other, "other trust domain": elsewhere} {
		if _, err := dialMesh(t, ca, "client", mesh.ALPNConduit); err == nil {
			t.Errorf("%s: was let in", name)
		}
	}
	if _, err := dialMesh(t, n2.ca, "client", "http/1.1"); err == nil {
		t.Error("another protocol: was let in")
	}
	c := dial(t, webMesh)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if b, err := io.ReadAll(c); bytes.Contains(b, []byte("HTTP")) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("plaintext: %q, %v", b, err)
	}
	eventually(t, func() bool { return strings.Contains(n2.stats(), "conduit_proxy_connections_open 0\n") }, func() string { return "connections stay open" })
	n2.want("conduit_proxy_mesh_connections_open 0")
}

// Two pods with different identities never share a link, even to the same place.
func TestIdentitiesDoNotShareLinks(t *testing.T) {
	n1, n2 := pair(t)
	httpApp(t, webIP+":8080", "web")
	other := workload("other", "n1", "127.9.1.2")
	snap := &api.Snapshot{
		Version: 6, TrustDomain: "test",
		Workloads: []mesh.Workload{workload("client", "n1", clientIP), other, workload("web", "n2", webIP)},
		Services: []mesh.Service{
			service("web", "127.9.9.1", 7080, mesh.Detect, webIP+":8080"), service("web", "127.9.9.6", 7080, mesh.Detect, webIP+":8080"),
		},
	}
	n1.must(&api.Message{Snapshot: snap})
	n2.must(&api.Message{Snapshot: snap})
	n1.certify(n2.ca, "other")
	n1.addPod(103, other, "", "127.9.9.6:7080")
	for _, addr := range []string{httpSvc, "127.9.9.6:7080", httpSvc, "127.9.9.6:7080"} {
		if status, body, _ := get(t, httpClient(t, true), "http://"+addr+"/"); status != 200 {
			t.Errorf("%s: %d %q", addr, status, body)
		}
	}
	n1.want("conduit_proxy_mesh_connections_dialled_total 2", "conduit_proxy_mesh_connections_open 2")
	n2.want(`request_total{direction="inbound",src="shop/client",dst="shop/web",protocol="http2",tls="mtls",route="default"} 2`,
		`request_total{direction="inbound",src="shop/other",dst="shop/web",protocol="http2",tls="mtls",route="default"} 2`)
}
