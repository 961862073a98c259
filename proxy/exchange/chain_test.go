package exchange_test

import (
	"fmt"
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h1"
	"conduit.io/conduit/proxy/h2"
	"conduit.io/conduit/proxy/opaque"
)

// chain is client - proxy (h1 in, h2 out) - proxy (h2 in, h1 out) - server: what two nodes make of a connection.
type chain struct {
	n           *flowtest.Net
	client, app *exchangetest.Peer
	down, up    *flowtest.Conn // the outer ends of the two proxies
	mid         [2]*flowtest.Conn
	near, far   *exchangetest.Handler
	link        *h2.Client
	appClient   exchange.Upstream
}

// newChain joins the proxies by an internal link, or by none if direct. kind is the protocol at both ends.
func newChain(direct bool, kind string) *chain {
	c := &chain{n: flowtest.New(), near: &exchangetest.Handler{}, far: &exchangetest.Handler{}}
	var a, b *flowtest.Conn
	a, c.down = c.n.Pair()
	c.up, b = c.n.Pair()
	c.client, c.app = exchangetest.NewPeer(a), exchangetest.NewPeer(b)
	pool := exchange.NewPool()
	co := exchange.ClientOptions{Clock: c.n, Pool: pool}
	if kind == "opaque" {
		c.appClient = opaque.NewClient(c.up, co)
	} else {
		c.appClient = h1.NewClient(c.up, co)
	}
	last := func(*exchange.Stream) exchange.Upstream { return c.appClient }
	c.near.Up = last
	if !direct {
		c.mid[0], c.mid[1] = c.n.Pair()
		c.far.Up = last
		h2.NewServer(c.mid[1], c.far, exchange.ServerOptions{Clock: c.n, Pool: pool, Internal: true})
		c.link = h2.NewClient(c.mid[0], exchange.ClientOptions{Clock: c.n, Pool: pool, Internal: true})
		c.near.Up = func(*exchange.Stream) exchange.Upstream { return c.link }
	}
	so := exchange.ServerOptions{Clock: c.n, Pool: pool}
	if kind == "opaque" {
		opaque.NewServer(c.down, c.near, so, &exchange.Head{Method: "CONNECT", Authority: "192.0.2.2:80"}, nil)
	} else {
		h1.NewServer(c.down, c.near, so)
	}
	c.n.Run()
	return c
}

func (c *chain) do(req, res string) (string, string) {
	c.client.Send(req)
	c.n.Run()
	got := c.app.Take()
	c.app.Send(res)
	c.n.Run()
	return got, c.client.Take()
}

var messages = []struct{ name, req, res string }{
	{"get", "GET /a?b HTTP/1.1\r\nhost: h\r\nx: y\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ndate: now\r\n\r\nok"},
	{"post", "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 11\r\n\r\nhello world", "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"},
	{"chunked", "PUT /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\nx-t: v\r\n\r\n"},
	{"empty chunked", "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"absolute form", "GET http://h:81/x HTTP/1.1\r\nhost: h:81\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"},
	{"absolute form without path", "OPTIONS http://h:81 HTTP/1.1\r\nhost: h:81\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"},
	{"head", "HEAD / HTTP/1.1\r\nhost: h\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 77\r\n\r\n"},
	{"204", "DELETE / HTTP/1.1\r\nhost: h\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"},
	{"304", "GET / HTTP/1.1\r\nhost: h\r\n\r\n", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"},
	{"interim", "POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nq",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nr"},
	{"cookies", "GET / HTTP/1.1\r\nhost: h\r\ncookie: a=1; b=2\r\n\r\n", "HTTP/1.1 200 OK\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 0\r\n\r\n"},
}

// TestRoundTripAtEverySplit sends each message cut in two at every position, through one proxy and through two, and
// wants the same at the other end.
func TestRoundTripAtEverySplit(t *testing.T) {
	for _, m := range messages {
		t.Run(m.name, func(t *testing.T) {
			for _, direct := range []bool{true, false} {
				for i := 1; i < len(m.req); i++ {
					c := newChain(direct, "h1")
					c.client.Send(m.req[:i])
					c.n.Run()
					app, _ := c.do(m.req[i:], "")
					j := 1 + i%(len(m.res)-1)
					_, first := c.do("", m.res[:j])
					_, second := c.do("", m.res[j:])
					if got := joined(app); got != joined(m.req) {
						t.Fatalf("direct %v, split %d: app got %q, want %q", direct, i, app, m.req)
					}
					if got := joined(first + second); got != joined(m.res) {
						t.Fatalf("direct %v, split %d: client got %q, want %q", direct, j, first+second, m.res)
					}
					if c.near.Open+c.far.Open != 0 || c.near.Log[0].Reason != "" || c.appClient.Room() != 1 {
						t.Fatalf("direct %v, split %d: open %d %d, room %d", direct, i, c.near.Open, c.far.Open, c.appClient.Room())
					}
				}
			}
		})
	}
}

// joined puts the chunks of a chunked body together.
func joined(s string) string {
	head, body, _ := strings.Cut(s, "\r\n\r\n")
	if !strings.Contains(head, "transfer-encoding: chunked") {
		if strings.HasPrefix(s, "HTTP/1.1 1") {
			return head + "\r\n\r\n" + joined(body)
		}
		return s
	}
	out := head + "\r\n\r\n"
	for {
		line, rest, ok := strings.Cut(body, "\r\n")
		var n int
		if _, err := fmt.Sscanf(line, "%x", &n); err != nil || !ok || n > len(rest)-2 {
			return out + "BAD" + body
		}
		if n == 0 {
			return out + "0\r\n" + rest
		}
		out += rest[:n]
		body = rest[n+2:]
	}
}

func TestWebSocketOverLink(t *testing.T) {
	const up = "GET /chat HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n"
	c := newChain(false, "h1")
	app, got := c.do(up+"early", "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: a\r\n\r\nhi")
	if app != "GET /chat HTTP/1.1\r\nhost: h\r\nsec-websocket-key: k\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n" {
		t.Errorf("app got %q", app)
	}
	if got != "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi" {
		t.Errorf("client got %q", got)
	}
	if app, got = c.do("frame", "reply"); app != "earlyframe" && app != "frame" || got != "reply" {
		t.Errorf("app %q, client %q", app, got)
	}
	c.app.C.CloseWrite()
	c.n.Run()
	if !c.client.HadEOF || c.client.Ended {
		t.Error("half-close is lost")
	}
	c.client.C.CloseWrite()
	c.n.Run()
	if !c.client.Ended || !c.app.Ended || c.client.Err != nil || c.app.Err != nil || c.near.Open+c.far.Open != 0 {
		t.Errorf("end: %v %v %v %v", c.client.Ended, c.client.Err, c.app.Ended, c.app.Err)
	}
	for _, status := range []string{"200 OK", "403 Forbidden"} { // declined
		c = newChain(false, "h1")
		res := "HTTP/1.1 " + status + "\r\ncontent-length: 2\r\n\r\nno"
		for range 2 {
			if _, got := c.do(up, res); got != res {
				t.Errorf("declined: got %q, want %q", got, res)
			}
		}
	}
}

func TestUpgradeByPost(t *testing.T) {
	for _, direct := range []bool{true, false} {
		c := newChain(direct, "h1")
		const req = "POST /exec HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: SPDY/3.1\r\n\r\n"
		const res = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: SPDY/3.1\r\n\r\n"
		app, got := c.do(req, res)
		if app != req || got != res {
			t.Errorf("direct %v: app got %q, client %q", direct, app, got)
		}
	}
}

func TestConnectOverLink(t *testing.T) {
	c := newChain(false, "h1")
	app, got := c.do("CONNECT h:22 HTTP/1.1\r\nhost: h:22\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nSSH")
	if app != "CONNECT h:22 HTTP/1.1\r\nhost: h:22\r\n\r\n" || got != "HTTP/1.1 200 OK\r\n\r\nSSH" {
		t.Errorf("app %q, client %q", app, got)
	}
	if app, got = c.do("x", "y"); app != "x" || got != "y" {
		t.Errorf("app %q, client %q", app, got)
	}
}

func TestOpaqueOverLink(t *testing.T) {
	for _, serverFirst := range []bool{false, true} {
		c := newChain(false, "opaque")
		one, two := c.client, c.app
		if serverFirst {
			one, two = two, one
		}
		one.Send("hello")
		one.C.CloseWrite()
		c.n.Run()
		if two.Take() != "hello" || !two.HadEOF || two.Ended {
			t.Fatal("half-close was not exact")
		}
		two.Send("answer")
		two.C.CloseWrite()
		c.n.Run()
		if one.Take() != "answer" || !one.Ended || one.Err != nil || two.Err != nil || c.near.Open+c.far.Open != 0 || c.mid[0].Gone() {
			t.Errorf("end: %v %v", one.Err, two.Err)
		}
	}
	c := newChain(false, "opaque")
	c.client.Send("x")
	c.n.Run()
	c.client.C.Abort()
	c.n.Run()
	if c.app.Err == nil || c.far.Log[0].Reason != mesh.ReasonDownstreamReset || c.mid[0].Gone() {
		t.Errorf("a reset became %v", c.app.Err)
	}
	c = newChain(false, "opaque")
	c.app.Send("x")
	c.n.Run()
	c.app.C.Abort()
	c.n.Run()
	if c.client.Err == nil || c.near.Log[0].Reason != mesh.ReasonUpstreamReset {
		t.Errorf("a reset became %v, log %v", c.client.Err, c.near.Log)
	}
}

func TestRefusedTunnelIsReset(t *testing.T) {
	c := newChain(false, "opaque")
	c.far.OnRequest = func(s *exchange.Stream) { s.Fail(503, mesh.ReasonConnect, "nobody listens") }
	a, d := c.n.Pair()
	client := exchangetest.NewPeer(a)
	opaque.NewServer(d, c.near, exchange.ServerOptions{Clock: c.n}, &exchange.Head{Method: "CONNECT", Authority: "192.0.2.2:81"}, nil)
	client.Send("data")
	c.n.Run()
	if l := c.near.Log[len(c.near.Log)-1]; client.Err == nil || client.Got.Len() != 0 || l.Reason != mesh.ReasonConnect || l.Status != 503 {
		t.Errorf("client %v %q, log %v", client.Err, client.Take(), c.near.Log)
	}
}

func TestBackpressureThroughLink(t *testing.T) {
	for _, kind := range []string{"h1", "opaque"} {
		c := newChain(false, kind)
		c.client.C.Room, c.up.Room, c.up.Chunk = 32<<10, 32<<10, 32<<10
		c.client.C.Pause()
		body := strings.Repeat("0123456789abcdef", 1<<18)
		if kind == "h1" {
			c.client.Send("GET / HTTP/1.1\r\nhost: h\r\n\r\n")
			c.n.Run()
			c.app.Send("HTTP/1.1 200 OK\r\ncontent-length: 4194304\r\n\r\n")
		}
		c.app.Send(body)
		c.n.Run()
		if !c.up.Paused || c.up.Received > 1<<20 {
			t.Fatalf("%s: paused %v after %d", kind, c.up.Paused, c.up.Received)
		}
		c.client.C.Resume()
		c.n.Run()
		got := c.client.Take()
		if !strings.HasSuffix(got, body) || len(got) > len(body)+100 {
			t.Errorf("%s: got %d", kind, len(got))
		}
	}
}
