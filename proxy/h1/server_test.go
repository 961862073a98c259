package h1_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h1"
)

// rig is client - h1 proxy - server, with raw ends.
type rig struct {
	n        *flowtest.Net
	h        *exchangetest.Handler
	client   *exchangetest.Peer
	app      *exchangetest.Peer
	down, up *flowtest.Conn // the proxy's ends
	sv       *h1.Server
	cl       *h1.Client
	closed   int
	reasons  []mesh.Reason
	abuses   []mesh.Abuse
	changes  []bool
}

func newRig(so exchange.ServerOptions, co exchange.ClientOptions) *rig {
	r := &rig{n: flowtest.New(), h: &exchangetest.Handler{}}
	var a, b *flowtest.Conn
	a, r.down = r.n.Pair()
	r.up, b = r.n.Pair()
	r.client, r.app = exchangetest.NewPeer(a), exchangetest.NewPeer(b)
	pool := exchange.NewPool()
	so.Clock, co.Clock, so.Pool, co.Pool = r.n, r.n, pool, pool
	so.OnClose = func(error) { r.closed++ }
	so.OnViolation = func(v exchange.Violation) {
		r.reasons = append(r.reasons, v.Reason)
		if v.Abuse != mesh.AbuseNone {
			r.abuses = append(r.abuses, v.Abuse)
		}
	}
	co.OnChange = func(_ exchange.Upstream, ended bool, _ error) { r.changes = append(r.changes, ended) }
	r.cl = h1.NewClient(r.up, co)
	r.h.Up = func(*exchange.Stream) exchange.Upstream { return r.cl }
	r.sv = h1.NewServer(r.down, r.h, so)
	return r
}

// do sends a request, then the app's answer, and returns what app and client got.
func (r *rig) do(req, res string) (string, string) {
	r.client.Send(req)
	r.n.Run()
	got := r.app.Take()
	r.app.Send(res)
	r.n.Run()
	return got, r.client.Take()
}

const ok200 = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

func TestForward(t *testing.T) {
	big := strings.Repeat("x", 300)
	for _, tt := range []struct{ name, req, res, app, client string }{
		{"get", "GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-Y:  z \r\n\r\n", ok200,
			"GET /a?b=c HTTP/1.1\r\nhost: h\r\nx-y: z\r\n\r\n", ok200},
		{"empty lines first", "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", ok200, "GET / HTTP/1.1\r\nhost: h\r\n\r\n", ok200},
		{"absolute form", "GET http://other:81/p HTTP/1.1\r\nHost: h\r\n\r\n", ok200,
			"GET http://other:81/p HTTP/1.1\r\nhost: other:81\r\n\r\n", ok200},
		{"options star", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", ok200, "OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n", ok200},
		{"length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", ok200,
			"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc", ok200},
		{"post without body", "POST / HTTP/1.1\r\nHost: h\r\n\r\n", ok200,
			"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n", ok200},
		{"chunked with extension and trailer",
			"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n", ok200,
			"PUT / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\na\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\n", ok200},
		{"hop by hop", "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, X-Own\r\nKeep-Alive: 5\r\nX-Own: 1\r\nProxy-Connection: a\r\nTE: trailers\r\nX: 2\r\n\r\n",
			"HTTP/1.1 200 OK\r\nConnection: Foo\r\nFoo: 1\r\nKeep-Alive: 3\r\nContent-Length: 0\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: h\r\nx: 2\r\nte: trailers\r\nconnection: te\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"},
		{"no forged mesh fields", "GET / HTTP/1.1\r\nHost: h\r\nConduit-Client: 1.2.3.4:5\r\nConduit-Reason: x\r\n\r\n",
			"HTTP/1.1 200 OK\r\nConduit-Reason: forged\r\ncontent-length: 0\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: h\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"},
		{"head", "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n",
			"HEAD / HTTP/1.1\r\nhost: h\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n"},
		{"204", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: h\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"304 with length", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\netag: a\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: h\r\n\r\n", "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\netag: a\r\n\r\n"},
		{"chunked response with trailers", "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nhi\r\n0\r\nX-T: v\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: h\r\n\r\n",
			"HTTP/1.1 200 OK\r\ntrailer: X-T\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-t: v\r\n\r\n"},
		{"no reason phrase", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n",
			"GET / HTTP/1.1\r\nhost: h\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"},
		{"interim", "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nq",
			"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + ok200,
			"POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nq",
			"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + ok200},
		{"cookies", "GET / HTTP/1.1\r\nHost: h\r\nCookie: a=1\r\nx: y\r\nCookie: b=2\r\n\r\n", ok200,
			"GET / HTTP/1.1\r\nhost: h\r\ncookie: a=1; b=2\r\nx: y\r\n\r\n", ok200},
		{"long value", "GET / HTTP/1.1\r\nHost: h\r\nV: " + big + "\r\n\r\n", ok200, "GET / HTTP/1.1\r\nhost: h\r\nv: " + big + "\r\n\r\n", ok200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, chunk := range []int{0, 1, 2, 3, 7} {
				r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
				r.down.Chunk, r.up.Chunk = chunk, chunk
				for i := range 3 { // the connections are kept, and the memo is used
					app, client := r.do(tt.req, tt.res)
					app, client = unchunk(app), unchunk(client)
					if app != unchunk(tt.app) || client != unchunk(tt.client) {
						t.Fatalf("chunk %d, round %d:\napp    %q\nwant   %q\nclient %q\nwant   %q", chunk, i, app, tt.app, client, tt.client)
					}
				}
				if r.h.Open != 0 || len(r.h.Log) != 3 || r.h.Log[2].Reason != "" || r.cl.Room() != 1 || r.cl.Served() != 3 {
					t.Fatalf("chunk %d: open %d, log %v, room %d", chunk, r.h.Open, r.h.Log, r.cl.Room())
				}
			}
		})
	}
}

// unchunk joins the chunks of a body: how it is cut depends on how it arrived.
func unchunk(s string) string {
	head, body, _ := strings.Cut(s, "\r\n\r\n")
	if !strings.Contains(head, "transfer-encoding: chunked") {
		return s
	}
	out := head + "\r\n\r\n"
	for {
		line, rest, ok := strings.Cut(body, "\r\n")
		var n int
		if _, err := fmt.Sscanf(line, "%x", &n); err != nil || !ok {
			return out + "BAD" + body
		}
		if n == 0 {
			return out + "0\r\n" + rest
		}
		out += rest[:n]
		body = rest[n+2:]
	}
}

var (
	hostLine   = "Host: h\r\n"
	manyFields = strings.Repeat("a: b\r\n", 300)
)

var refused = []struct {
	name, req string
	status    int
}{
	{"CL and TE", "POST / HTTP/1.1\r\n" + hostLine + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"TE and CL", "POST / HTTP/1.1\r\n" + hostLine + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400},
	{"two lengths", "POST / HTTP/1.1\r\n" + hostLine + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400},
	{"two equal lengths", "POST / HTTP/1.1\r\n" + hostLine + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400},
	{"length list", "POST / HTTP/1.1\r\n" + hostLine + "Content-Length: 3, 3\r\n\r\nabc", 400},
	{"signed length", "POST / HTTP/1.1\r\n" + hostLine + "Content-Length: +3\r\n\r\nabc", 400},
	{"huge length", "POST / HTTP/1.1\r\n" + hostLine + "Content-Length: 99999999999999999999\r\n\r\nabc", 400},
	{"empty length", "POST / HTTP/1.1\r\n" + hostLine + "Content-Length:\r\n\r\nabc", 400},
	{"unknown coding", "POST / HTTP/1.1\r\n" + hostLine + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
	{"chunked twice", "POST / HTTP/1.1\r\n" + hostLine + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400},
	{"chunked first", "POST / HTTP/1.1\r\n" + hostLine + "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400},
	{"hidden coding", "POST / HTTP/1.1\r\n" + hostLine + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400},
	{"two codings", "POST / HTTP/1.1\r\n" + hostLine + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400},
	{"coding in 1.0", "POST / HTTP/1.0\r\n" + hostLine + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"bare LF in request line", "GET / HTTP/1.1\n" + hostLine + "\r\n", 400},
	{"bare LF in field", "GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", 400},
	{"bare LF at end", "GET / HTTP/1.1\r\nHost: h\r\n\n", 400},
	{"bare CR in value", "GET / HTTP/1.1\r\n" + hostLine + "X: a\rb\r\n\r\n", 400},
	{"NUL in value", "GET / HTTP/1.1\r\n" + hostLine + "X: a\x00b\r\n\r\n", 400},
	{"fold", "GET / HTTP/1.1\r\n" + hostLine + "X: a\r\n b\r\n\r\n", 400},
	{"space before colon", "GET / HTTP/1.1\r\n" + hostLine + "Content-Length : 3\r\n\r\nabc", 400},
	{"space before name", "GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400},
	{"no colon", "GET / HTTP/1.1\r\n" + hostLine + "X\r\n\r\n", 400},
	{"empty name", "GET / HTTP/1.1\r\n" + hostLine + ": x\r\n\r\n", 400},
	{"no host", "GET / HTTP/1.1\r\nX: y\r\n\r\n", 400},
	{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400},
	{"bad host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
	{"user in host", "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400},
	{"two spaces", "GET  / HTTP/1.1\r\n" + hostLine + "\r\n", 400},
	{"tab", "GET\t/ HTTP/1.1\r\n" + hostLine + "\r\n", 400},
	{"no version", "GET /\r\n" + hostLine + "\r\n", 400},
	{"trailing space", "GET / HTTP/1.1 \r\n" + hostLine + "\r\n", 400},
	{"bad method", "G(T / HTTP/1.1\r\n" + hostLine + "\r\n", 400},
	{"relative target", "GET a HTTP/1.1\r\n" + hostLine + "\r\n", 400},
	{"star for GET", "GET * HTTP/1.1\r\n" + hostLine + "\r\n", 400},
	{"other scheme", "GET ftp://h/ HTTP/1.1\r\n" + hostLine + "\r\n", 400},
	{"CONNECT with body", "CONNECT h:1 HTTP/1.1\r\n" + hostLine + "Content-Length: 3\r\n\r\nabc", 400},
	{"CONNECT without port", "CONNECT h HTTP/1.1\r\n" + hostLine + "\r\n", 400},
	{"version 2", "GET / HTTP/2.0\r\n" + hostLine + "\r\n", 505},
	{"many fields", "GET / HTTP/1.1\r\n" + hostLine + manyFields + "\r\n", 431},
	{"large head", "GET / HTTP/1.1\r\n" + hostLine + "X: " + strings.Repeat("a", 70000) + "\r\n\r\n", 431},
	{"endless line", strings.Repeat("a", 70000), 414},
	{"long target", "GET /" + strings.Repeat("a", 70000) + " HTTP/1.1\r\n" + hostLine + "\r\n", 414},
}

func TestRefused(t *testing.T) {
	for _, tt := range refused {
		t.Run(tt.name, func(t *testing.T) {
			for _, chunk := range []int{0, 5} {
				r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
				r.down.Chunk = chunk
				r.client.Send(tt.req + "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
				r.n.Run()
				got := r.client.Take()
				if !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.1 %d ", tt.status)) || strings.Count(got, "HTTP/1.1 ") != 1 {
					t.Fatalf("client got %q", got)
				}
				if !strings.Contains(got, "connection: close\r\n") || !strings.Contains(got, "conduit-reason: ") {
					t.Fatalf("client got %q", got)
				}
				if _, body, _ := strings.Cut(got, "\r\n\r\n"); strings.Index(body, "\n") != len(body)-1 || !strings.Contains(got, fmt.Sprintf("\r\ncontent-length: %d\r\n", len(body))) {
					t.Fatalf("client got %q: the body is not one line", got)
				}
				r.n.Advance(3 * time.Second)
				if r.app.Got.Len() != 0 || !r.client.HadEOF || r.closed != 1 || len(r.reasons) != 1 || len(r.h.Log) != 0 {
					t.Fatalf("app %q, EOF %v, closed %d, violations %v", r.app.Take(), r.client.HadEOF, r.closed, r.reasons)
				}
			}
		})
	}
}

func TestBadChunks(t *testing.T) {
	for _, body := range []string{
		"\r\n", "g\r\n", "-1\r\n", "0x3\r\nabc\r\n", "3 \r\nabc\r\n", " 3\r\nabc\r\n", "3\nabc\r\n", "3\r\nabcd\r\n", "3\r\nabc\n0\r\n\r\n",
		"3\r\nabc\rX", "ffffffffffffffff\r\n", "3;\x00\r\nabc\r\n", "3;a\nabc\r\n", "3;" + strings.Repeat("e", 20000) + "\r\n",
		"0\r\nbad name: x\r\n\r\n", "0\r\nX: y\nZ: q\r\n\r\n", "0\r\n X: y\r\n\r\n", "0\r\nX: " + strings.Repeat("a", 70000),
	} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		r.client.Send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + body + "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
		r.n.Run()
		got := r.client.Take()
		if !strings.HasPrefix(got, "HTTP/1.1 4") || strings.Count(got, "HTTP/1.1 ") != 1 {
			t.Errorf("%.40q: client got %q", body, got)
		}
		if app := r.app.Take(); strings.Contains(app, "0\r\n\r\n") || strings.Contains(app, "smuggled") || !r.app.Ended {
			t.Errorf("%.40q: app got %q, ended %v", body, app, r.app.Ended)
		}
		if r.h.Open != 0 || len(r.h.Log) != 1 || r.h.Log[0].Reason == "" {
			t.Errorf("%.40q: log %v", body, r.h.Log)
		}
	}
}

func TestBadResponses(t *testing.T) {
	for _, res := range []string{
		"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
		"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\n\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 099 OK\r\n\r\n", "HTTP/2.0 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX y\r\n\r\n", "HTTP/1.1 200 OK\r\nX : y\r\n\r\n", "HTTP/1.1 200 OK\r\n folded\r\n\r\n",
		"HTTP/1.1 101 Switching\r\n\r\n", "SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 70000) + "\r\n\r\n", strings.Repeat("HTTP/1.1 103 E\r\n\r\n", 40),
	} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		_, got := r.do("GET / HTTP/1.1\r\nHost: h\r\n\r\n", res)
		if i := strings.Index(got, "HTTP/1.1 502 "); i < 0 || !strings.Contains(got, "conduit-reason: upstream-protocol\r\n") {
			t.Errorf("%.40q: client got %q", res, got)
		}
		if !r.app.Ended || r.cl.Room() != 0 || r.h.Log[0].Reason != mesh.ReasonUpstreamProto {
			t.Errorf("%.40q: ended %v, room %d, log %v", res, r.app.Ended, r.cl.Room(), r.h.Log)
		}
	}
}

func newPeer(c *flowtest.Conn) *exchangetest.Peer { return exchangetest.NewPeer(c) }
