package exchange_test

import (
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h1"
	"conduit.io/conduit/proxy/h2"

	"golang.org/x/net/http2"
)

// fromH2 is a client that speaks HTTP/2 before an application, with one proxy between them or two.
type fromH2 struct {
	n      *flowtest.Net
	pool   *exchange.Pool
	near   *exchangetest.Handler // of the first proxy
	last   *exchangetest.Handler // of the last proxy, the same if there is one
	client *exchangetest.H2
}

func newFromH2(link bool) *fromH2 {
	r := &fromH2{n: flowtest.New(), pool: exchange.NewPool(), last: &exchangetest.Handler{}}
	r.near = r.last
	if link {
		x, y := r.n.Pair()
		h2.NewServer(y, r.last, exchange.ServerOptions{Clock: r.n, Pool: r.pool, Internal: true})
		over := h2.NewClient(x, exchange.ClientOptions{Clock: r.n, Pool: r.pool, Internal: true})
		r.near = &exchangetest.Handler{Up: func(*exchange.Stream) exchange.Upstream { return over }}
	}
	a, down := r.n.Pair()
	h2.NewServer(down, r.near, exchange.ServerOptions{Clock: r.n, Pool: r.pool, Extended: true})
	r.client = exchangetest.NewH2(a, true)
	r.client.Settings()
	r.n.Run()
	return r
}

// http1 is an application that speaks HTTP/1.1.
func (r *fromH2) http1() *exchangetest.Peer {
	up, b := r.n.Pair()
	app, cl := exchangetest.NewPeer(b), h1.NewClient(up, exchange.ClientOptions{Clock: r.n, Pool: r.pool})
	r.last.Up = func(*exchange.Stream) exchange.Upstream { return cl }
	return app
}

// http2 is one that speaks HTTP/2, with these settings.
func (r *fromH2) http2(s ...http2.Setting) *exchangetest.H2 {
	up, b := r.n.Pair()
	cl := h2.NewClient(up, exchange.ClientOptions{Clock: r.n, Pool: r.pool})
	r.last.Up = func(*exchange.Stream) exchange.Upstream { return cl }
	app := exchangetest.NewH2(b, false)
	app.Settings(s...)
	r.n.Run()
	return app
}

// open asks for a tunnel in a protocol.
func (r *fromH2) open(id uint32, protocol string, kv ...string) {
	r.client.Headers(id, false, append([]string{":method", "CONNECT", ":protocol", protocol, ":scheme", "http", ":path", "/chat",
		":authority", "h"}, kv...)...)
	r.n.Run()
}

// closed wants every stream to be over, for reason.
func (r *fromH2) closed(t *testing.T, what string, reason mesh.Reason) {
	t.Helper()
	if r.near.Open+r.last.Open != 0 || len(r.last.Log) == 0 || r.last.Log[len(r.last.Log)-1].Reason != reason {
		t.Errorf("%s: %d and %d open, log %v", what, r.near.Open, r.last.Open, r.last.Log)
	}
}

// key is the value of the Sec-WebSocket-Key in a request.
func key(req string) string {
	_, v, _ := strings.Cut(req, "\r\nsec-websocket-key: ")
	v, _, _ = strings.Cut(v, "\r\n")
	return v
}

func switching(accept string) string {
	return "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-protocol: chat\r\n" +
		"sec-websocket-accept: " + accept + "\r\n\r\n"
}

// A WebSocket of an HTTP/2 client reaches an application that speaks HTTP/1.1: the proxy before it makes the key that HTTP/1.1
// demands, and sees to it that the answer proves what it must (RFC 8441, 5; RFC 6455, 4.1).
func TestWebSocketFromH2TowardH1(t *testing.T) {
	for _, link := range []bool{false, true} {
		r := newFromH2(link)
		app := r.http1()
		keys := map[string]bool{}
		for id := uint32(1); id < 6; id += 2 {
			r.open(id, "websocket", "sec-websocket-version", "13", "sec-websocket-protocol", "chat")
			got := app.Take()
			k := key(got)
			if want := "GET /chat HTTP/1.1\r\nhost: h\r\nsec-websocket-version: 13\r\nsec-websocket-protocol: chat\r\n" +
				"sec-websocket-key: " + k + "\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"; got != want || len(k) != 24 || keys[k] {
				t.Fatalf("link %v: app got %q, want %q with a key of its own", link, got, want)
			}
			keys[k] = true
			r.client.Body(id, false, []byte("early"))
			r.n.Run()
			if s := app.Take(); s != "" {
				t.Errorf("link %v: app got %q before it had agreed", link, s)
			}
			app.Send(switching(exchange.WebSocketAccept(k)) + "hello")
			r.n.Run()
			b, _ := r.client.Bytes(id)
			if r.client.Field(id, 0, ":status") != "200" || r.client.Field(id, 0, "sec-websocket-protocol") != "chat" ||
				r.client.Field(id, 0, "sec-websocket-accept") != "" || string(b) != "hello" {
				t.Fatalf("link %v: client got %v", link, r.client.Frames)
			}
			r.client.Body(id, true, []byte(" and late"))
			r.n.Run()
			if s := app.Take(); s != "early and late" || !app.HadEOF {
				t.Errorf("link %v: app got %q, EOF %v", link, s, app.HadEOF)
			}
			app.Send("bye")
			app.C.Close()
			r.n.Run()
			if b, end := r.client.Bytes(id); string(b) != "hellobye" || !end {
				t.Errorf("link %v: client got %q, end %v", link, b, end)
			}
			r.closed(t, "after", "")
			app = r.http1()
		}
	}
}

// What is no proof that the server understood is no WebSocket. Nor is a response that passes over the wish: to the client 200
// would say that it has its tunnel.
func TestWebSocketFromH2Declined(t *testing.T) {
	for name, tt := range map[string]struct {
		protocol, res, status string
		reason                mesh.Reason
	}{
		"wrong proof":  {"websocket", switching("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "502", mesh.ReasonUpstreamProto},
		"no proof":     {"websocket", "HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", "502", mesh.ReasonUpstreamProto},
		"passed over":  {"websocket", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "502", mesh.ReasonNoUpgrade},
		"another":      {"connect-udp", "HTTP/1.1 204 No Content\r\n\r\n", "502", mesh.ReasonNoUpgrade},
		"turned down":  {"websocket", "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", "403", ""},
		"sent away":    {"websocket", "HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "302", ""},
		"no authority": {"websocket", "HTTP/1.1 401 Unauthorized\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "401", ""},
	} {
		for _, link := range []bool{false, true} {
			r := newFromH2(link)
			app := r.http1()
			r.open(1, tt.protocol)
			app.Send(tt.res)
			r.n.Run()
			if _, end := r.client.Bytes(1); r.client.Field(1, 0, ":status") != tt.status || !end ||
				r.client.Field(1, 0, "conduit-reason") != string(tt.reason) || r.client.Field(1, 0, "conduit-declined") != "" {
				t.Errorf("%s, link %v: client got %v", name, link, r.client.Frames)
			}
			r.closed(t, name, tt.reason)
		}
	}
}

// An application that takes extended CONNECT gets it as it is.
func TestWebSocketFromH2TowardH2(t *testing.T) {
	for _, protocol := range []string{"websocket", "connect-udp"} {
		for _, link := range []bool{false, true} {
			r := newFromH2(link)
			app := r.http2(connects)
			r.open(1, protocol, "sec-websocket-version", "13")
			for name, want := range map[string]string{":method": "CONNECT", ":protocol": protocol, ":scheme": "http", ":path": "/chat",
				":authority": "h", "sec-websocket-version": "13", "sec-websocket-key": "", "conduit-method": ""} {
				if got := app.Field(1, 0, name); got != want {
					t.Errorf("link %v: app got %s %q, want %q", link, name, got, want)
				}
			}
			app.Headers(1, false, ":status", "200")
			app.Body(1, false, []byte("hello"))
			r.client.Body(1, true, []byte("ping"))
			r.n.Run()
			app.Body(1, true, nil)
			r.n.Run()
			b, end := r.client.Bytes(1)
			if r.client.Field(1, 0, ":status") != "200" || string(b) != "hello" || !end {
				t.Errorf("link %v: client got %v", link, r.client.Frames)
			}
			if b, end := app.Bytes(1); string(b) != "ping" || !end {
				t.Errorf("link %v: app got %q, end %v", link, b, end)
			}
			r.closed(t, protocol, "")
		}
	}
}

// One that does not is not asked: the Handler may know another way, or the client is told.
func TestWebSocketFromH2NotEnabled(t *testing.T) {
	for _, protocol := range []string{"websocket", "connect-udp"} {
		for _, link := range []bool{false, true} {
			r := newFromH2(link)
			app := r.http2()
			r.open(1, protocol)
			if r.client.Field(1, 0, ":status") != "502" || r.client.Field(1, 0, "conduit-reason") != "no-upgrade" || len(app.Find(http2.FrameHeaders, 1)) != 0 {
				t.Errorf("%s, link %v: client got %v, app %v", protocol, link, r.client.Frames, app.Frames)
			}
			r.closed(t, protocol, mesh.ReasonNoUpgrade)
			var old *exchangetest.Peer
			r.last.OnLost = func(s *exchange.Stream, reason mesh.Reason) bool {
				if reason != mesh.ReasonNoUpgrade || !s.Unprocessed {
					t.Errorf("lost for %q, unprocessed %v", reason, s.Unprocessed)
				}
				old = r.http1()
				s.Forward(r.last.Up(s), nil)
				return true
			}
			r.open(3, protocol)
			if got := old.Take(); !strings.HasPrefix(got, "GET /chat HTTP/1.1\r\n") || (key(got) != "") != (protocol == "websocket") {
				t.Errorf("%s, link %v: over HTTP/1.1 came %q", protocol, link, got)
			}
			if r.last.Losses != 2 || r.last.Open != 1 {
				t.Errorf("%s, link %v: %d lost, %d open", protocol, link, r.last.Losses, r.last.Open)
			}
		}
	}
}

// The server says that it takes extended CONNECT, and what is wrong with one.
func TestExtendedConnectIsAnnounced(t *testing.T) {
	r := newFromH2(false)
	app := r.http1()
	r.client.Headers(1, false, ":method", "GET", ":protocol", "websocket", ":scheme", "http", ":path", "/", ":authority", "h")
	r.open(3, "web socket")
	r.open(5, "websocket", "content-length", "3")
	for id := uint32(1); id < 7; id += 2 {
		if f := r.client.Find(http2.FrameRSTStream, id); len(f) != 1 || f[0].Code != http2.ErrCodeProtocol {
			t.Errorf("stream %d: %v", id, f)
		}
	}
	if got := app.Take(); got != "" {
		t.Errorf("app got %q", got)
	}
	if f := r.client.Find(http2.FrameSettings, 0); len(f) == 0 || f[0].Settings[http2.SettingEnableConnectProtocol] != 1 {
		t.Errorf("SETTINGS %v", f)
	}
}

// A server may enable it later; what was sent to it before is sent differently then (RFC 8441, 3).
func TestExtendedConnectEnabledLater(t *testing.T) {
	r := newTowardH2(false)
	r.app.Settings()
	for id := uint32(1); id < 11; id += 2 {
		if id == 9 {
			r.app.Settings(connects)
			r.n.Run()
		}
		r.client.Send("GET /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
		r.n.Run()
		want := "GET"
		if id == 9 {
			want = "CONNECT"
		}
		if got := r.app.Field(id, 0, ":method"); got != want {
			t.Fatalf("stream %d: app got %v", id, r.app.Find(http2.FrameHeaders, id))
		}
		r.app.Headers(id, true, ":status", "426")
		r.n.Run()
	}
}
