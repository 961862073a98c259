package link_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2"
	"golang.org/x/net/websocket"
)

// The addresses of the rig: a client pod on node 1, a server pod on node 2 (or 1), and Services that the client dials.
const (
	clientIP = "127.9.1.1"
	webIP    = "127.9.2.2"
	web2IP   = "127.9.2.3"
	httpSvc  = "127.9.9.1:7080"
	tcpSvc   = "127.9.9.2:5432"
	webMesh  = "127.9.2.2:15908"
)

func httpApp(t *testing.T, addr, name string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	mux := http.NewServeMux()
	mux.Handle("/ws", websocket.Handler(func(c *websocket.Conn) { io.Copy(c, c) }))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		for k := range r.Header {
			if strings.HasPrefix(k, "Conduit-") {
				t.Errorf("the application got %s", k)
			}
		}
		w.Header().Set("Conduit-Forged", "x")
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %d", name, r.Proto, r.URL.Path, len(b))
	})
	s := &http.Server{Handler: mux, Protocols: &p}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

func httpClient(t *testing.T, h2 bool) *http.Client {
	t.Helper()
	var p http.Protocols
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	tr := &http.Transport{Protocols: &p}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

func get(t *testing.T, c *http.Client, url string) (int, string, http.Header) {
	t.Helper()
	res, err := c.Post(url, "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

// pair is a client pod on n1 that dials two Services whose endpoint is on n2.
func pair(t *testing.T) (n1, n2 *testNode) {
	t.Helper()
	n1, n2 = startNode(t), startNode(t)
	ca := newCA(t)
	snap := &api.Snapshot{
		Version: 5, TrustDomain: "test", Node: "n",
		Workloads: []mesh.Workload{workload("client", "n1", clientIP), workload("web", "n2", webIP)},
		Services: []mesh.Service{
			service("web", "127.9.9.1", 7080, mesh.Detect, webIP+":8080"),
			service("db", "127.9.9.2", 5432, mesh.Detect, webIP+":5432"),
		},
	}
	n1.must(&api.Message{Snapshot: snap})
	n2.must(&api.Message{Snapshot: snap})
	n1.certify(ca, "client")
	n2.certify(ca, "web")
	n2.ca = ca
	n1.addPod(101, snap.Workloads[0], "", httpSvc+","+tcpSvc)
	n2.addPod(202, snap.Workloads[1], webMesh, "")
	return n1, n2
}

func TestHTTPOverTheMesh(t *testing.T) {
	n1, n2 := pair(t)
	httpApp(t, webIP+":8080", "web")
	for _, h2 := range []bool{false, true} {
		proto := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[h2]
		c := httpClient(t, h2)
		for range 3 {
			status, body, h := get(t, c, "http://"+httpSvc+"/a")
			if status != 200 || body != "web "+proto+" /a 5" {
				t.Errorf("h2 %v: %d %q", h2, status, body)
			}
			for k := range h {
				if strings.HasPrefix(k, "Conduit-") {
					t.Errorf("the client got %s", k)
				}
			}
		}
	}
	n1.want(
		`request_total{direction="outbound",src="shop/client",dst="shop/web",protocol="http1",tls="mtls",route="default"} 3`,
		`request_total{direction="outbound",src="shop/client",dst="shop/web",protocol="http2",tls="mtls",route="default"} 3`,
		`response_total{direction="outbound",src="shop/client",dst="shop/web",protocol="http2",tls="mtls",route="default",classification="success",class="2xx",grpc_status_code="",reason=""} 3`,
		`conduit_proxy_mesh_connections_dialled_total 1`,
		`conduit_proxy_mesh_connections_open 1`,
		`conduit_proxy_snapshot_version 5`,
		`conduit_proxy_pods 1`,
	)
	n2.want(`request_total{direction="inbound",src="shop/client",dst="shop/web",protocol="http2",tls="mtls",route="default"} 6`,
		`conduit_proxy_mesh_connections_open 1`)
}

func TestWebSocketOverTheMesh(t *testing.T) {
	pair(t)
	httpApp(t, webIP+":8080", "web")
	ws, err := websocket.Dial("ws://"+httpSvc+"/ws", "", "http://app.example/")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.SetDeadline(time.Now().Add(10 * time.Second))
	msg := strings.Repeat("w", 50000)
	if err := websocket.Message.Send(ws, msg); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(ws, got); err != nil || string(got) != msg {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A client that speaks HTTP/2 opens a WebSocket over it, though the application speaks HTTP/2 without this and takes
// WebSocket over HTTP/1.1 alone: through two proxies, and through one.
func TestWebSocketFromHTTP2(t *testing.T) {
	for name, start := range map[string]func(t *testing.T){
		"two nodes": func(t *testing.T) { pair(t) },
		"one":       func(t *testing.T) { local(t, mesh.Detect, webIP+":8080") },
	} {
		t.Run(name, func(t *testing.T) {
			start(t)
			httpApp(t, webIP+":8080", "web")
			//nolint:staticcheck // SA1019: net/http's Transport knows no extended CONNECT
			client := &http.Client{Transport: &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, addr)
			}}}
			t.Cleanup(client.CloseIdleConnections)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			for range 3 {
				r, w := io.Pipe()
				req, err := http.NewRequestWithContext(ctx, "CONNECT", "http://"+httpSvc+"/ws", r)
				if err != nil {
					t.Fatal(err)
				}
				req.Header = http.Header{":protocol": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Origin": {"http://app.example"}}
				res, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				go io.WriteString(w, "\x81\x85\x00\x00\x00\x00hello") // one frame
				got := make([]byte, 7)
				if _, err := io.ReadFull(res.Body, got); res.StatusCode != 200 || err != nil || string(got) != "\x81\x05hello" {
					t.Errorf("%s, %q came back, %v", res.Status, got, err)
				}
				w.Close()
				if _, err := io.Copy(io.Discard, res.Body); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestTCPOverTheMesh(t *testing.T) {
	n1, n2 := pair(t)
	tcpApp(t, webIP+":5432", func(c *net.TCPConn) {
		io.WriteString(c, "ready\n")
		echo(c)
	})
	c := dial(t, tcpSvc)
	got := make([]byte, 6)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "ready\n" {
		t.Fatalf("server-first: %q, %v", got, err)
	}
	sent := strings.Repeat("0123456789", 100000)
	go func() {
		io.WriteString(c, sent)
		c.CloseWrite()
	}()
	back, err := io.ReadAll(c)
	if err != nil || string(back) != sent {
		t.Fatalf("%d bytes of %d came back, %v", len(back), len(sent), err)
	}
	const l = `{direction="outbound",src="shop/client",dst="shop/db",protocol="tcp",tls="mtls"`
	n1.want(`tcp_open_total`+l+`} 1`, `tcp_close_total`+l+`,reason=""} 1`, `tcp_open_connections`+l+`} 0`,
		`tcp_read_bytes_total`+l+`} 1000000`, `tcp_write_bytes_total`+l+`} 1000006`)
	n2.want(`tcp_open_total{direction="inbound",src="shop/client",dst="shop/web",protocol="tcp",tls="mtls"} 1`)
}

func TestApplicationDown(t *testing.T) {
	n1, n2 := pair(t)
	status, body, h := get(t, httpClient(t, true), "http://"+httpSvc+"/")
	if status != 503 || h.Get("Conduit-Reason") != "connect-failed" {
		t.Errorf("HTTP: %d %q %v", status, body, h)
	}
	c := dial(t, tcpSvc)
	if n, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || n > 0 {
		t.Errorf("TCP: want a reset, got %d bytes, %v", n, err)
	}
	n1.want(`response_total{direction="outbound",src="shop/client",dst="shop/web",protocol="http2",tls="mtls",route="default",classification="failure",class="5xx",grpc_status_code="",reason="connect-failed"} 1`)
	n2.want(`response_total{direction="inbound",src="shop/client",dst="shop/web",protocol="http2",tls="mtls",route="default",classification="failure",class="5xx",grpc_status_code="",reason="connect-failed"} 1`)
}

func TestWrongIdentityIsRefused(t *testing.T) {
	n1, n2 := pair(t)
	httpApp(t, webIP+":8080", "web")
	w := workload("web", "n2", webIP)
	w.ServiceAccount = "impostor"
	n2.certify(n2.ca, "impostor")
	n2.must(&api.Message{Pod: &api.Pod{Cookie: 202, Workload: w}})
	status, _, h := get(t, httpClient(t, true), "http://"+httpSvc+"/")
	if status != 503 || h.Get("Conduit-Reason") != "peer-identity" {
		t.Errorf("%d %v", status, h)
	}
	n1.want(`conduit_proxy_mesh_connections_open 0`)
}

func TestNoCertificateYet(t *testing.T) {
	n1 := startNode(t)
	snap := &api.Snapshot{
		Version: 1, TrustDomain: "test",
		Workloads: []mesh.Workload{workload("client", "n1", clientIP), workload("web", "n2", webIP)},
		Services:  []mesh.Service{service("web", "127.9.9.1", 7080, mesh.HTTP1, webIP+":8080")},
	}
	n1.must(&api.Message{Snapshot: snap})
	n1.addPod(101, snap.Workloads[0], "", httpSvc)
	status, _, h := get(t, httpClient(t, false), "http://"+httpSvc+"/")
	if status != 503 || h.Get("Conduit-Reason") != "no-certificate" {
		t.Errorf("%d %v", status, h)
	}
}

func TestNoEndpoints(t *testing.T) {
	n1 := startNode(t)
	snap := &api.Snapshot{
		Version: 1, TrustDomain: "test", Workloads: []mesh.Workload{workload("client", "n1", clientIP)},
		Services: []mesh.Service{service("web", "127.9.9.1", 7080, mesh.Detect), service("db", "127.9.9.2", 5432, mesh.Opaque)},
	}
	n1.must(&api.Message{Snapshot: snap})
	n1.addPod(101, snap.Workloads[0], "", httpSvc+","+tcpSvc)
	for _, h2 := range []bool{false, true} {
		status, _, h := get(t, httpClient(t, h2), "http://"+httpSvc+"/")
		if status != 503 || h.Get("Conduit-Reason") != "no-endpoints" {
			t.Errorf("h2 %v: %d %v", h2, status, h)
		}
	}
	if c, err := net.Dial("tcp", tcpSvc); err == nil { // else it was reset even before Dial had returned
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("TCP: want a reset, got %v", err)
		}
	}
}
