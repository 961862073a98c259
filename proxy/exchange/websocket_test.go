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

// towardH2 is an HTTP/1.1 client before an application that speaks HTTP/2, with one proxy between them or two.
type towardH2 struct {
	n      *flowtest.Net
	h      *exchangetest.Handler // of the last proxy
	client *exchangetest.Peer
	app    *exchangetest.H2
	cl     *h2.Client // of the last proxy
}

func newTowardH2(link bool) *towardH2 {
	r := &towardH2{n: flowtest.New(), h: &exchangetest.Handler{}}
	a, down := r.n.Pair()
	up, b := r.n.Pair()
	r.cl = h2.NewClient(up, exchange.ClientOptions{Clock: r.n})
	r.h.Up = func(*exchange.Stream) exchange.Upstream { return r.cl }
	first := r.h
	if link {
		x, y := r.n.Pair()
		h2.NewServer(y, r.h, exchange.ServerOptions{Clock: r.n, Internal: true})
		near := h2.NewClient(x, exchange.ClientOptions{Clock: r.n, Internal: true})
		first = &exchangetest.Handler{Up: func(*exchange.Stream) exchange.Upstream { return near }}
	}
	h1.NewServer(down, first, exchange.ServerOptions{Clock: r.n})
	r.client, r.app = exchangetest.NewPeer(a), exchangetest.NewH2(b, false)
	r.app.Rude = true // its own SETTINGS come first, later
	r.n.Run()
	return r
}

var connects = http2.Setting{ID: 8, Val: 1} // SETTINGS_ENABLE_CONNECT_PROTOCOL

const wantsWS = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"

// A WebSocket of an HTTP/1.1 client reaches an application that takes it over HTTP/2 (RFC 8441, 5), which needs no keys; the
// client gets the proof that HTTP/1.1 demands (the key and its answer are those of RFC 6455, 1.3).
func TestWebSocketTowardH2(t *testing.T) {
	for _, link := range []bool{false, true} {
		for _, early := range []bool{false, true} {
			r := newTowardH2(link)
			if early { // the request is there before the server has said that it enables this
				r.client.Send(wantsWS)
				r.n.Run()
			}
			r.app.Settings(connects)
			r.n.Run()
			if !early {
				r.client.Send(wantsWS)
				r.n.Run()
			}
			f := r.app.Find(http2.FrameHeaders, 1)
			if len(f) != 1 || f[0].Flags.Has(http2.FlagHeadersEndStream) {
				t.Fatalf("link %v, early %v: app got %v", link, early, r.app.Frames)
			}
			for name, want := range map[string]string{":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":path": "/chat",
				":authority": "h", "sec-websocket-version": "13", "sec-websocket-key": "", "conduit-method": ""} {
				if got := r.app.Field(1, 0, name); got != want {
					t.Errorf("link %v, early %v: app got %s %q, want %q", link, early, name, got, want)
				}
			}
			r.app.Headers(1, false, ":status", "200", "sec-websocket-protocol", "chat")
			r.app.Body(1, false, []byte("hello"))
			r.n.Run()
			got := r.client.Take()
			if !strings.HasPrefix(got, "HTTP/1.1 101 ") || !strings.Contains(got, "\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n") ||
				!strings.Contains(got, "\r\nupgrade: websocket\r\n") || !strings.HasSuffix(got, "\r\n\r\nhello") {
				t.Errorf("link %v, early %v: client got %q", link, early, got)
			}
			r.client.Send("ping")
			r.n.Run()
			r.client.C.CloseWrite()
			r.n.Run()
			if b, end := r.app.Bytes(1); string(b) != "ping" || !end {
				t.Errorf("link %v, early %v: app got %q, end %v", link, early, b, end)
			}
			r.app.Body(1, true, nil)
			r.n.Run()
			if r.h.Open != 0 || r.h.Log[0].Reason != "" || !r.client.Ended {
				t.Errorf("link %v, early %v: %d open, log %v", link, early, r.h.Open, r.h.Log)
			}
		}
	}
}

// The application may turn the WebSocket down, as any request.
func TestWebSocketDeclinedByH2(t *testing.T) {
	r := newTowardH2(false)
	r.app.Settings(connects)
	r.client.Send(wantsWS)
	r.n.Run()
	r.app.Headers(1, false, ":status", "403", "content-length", "2")
	r.app.Body(1, true, []byte("no"))
	r.n.Run()
	if got := r.client.Take(); got != "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno" {
		t.Errorf("client got %q", got)
	}
}

// One that has not enabled it is not asked: the client is told why.
func TestWebSocketNotEnabled(t *testing.T) {
	for _, early := range []bool{false, true} {
		r := newTowardH2(false)
		if early {
			r.client.Send(wantsWS)
			r.n.Run()
		}
		r.app.Settings()
		r.n.Run()
		if !early {
			r.client.Send(wantsWS)
			r.n.Run()
		}
		got := r.client.Take()
		if !strings.HasPrefix(got, "HTTP/1.1 502 ") || !strings.Contains(got, "\r\nconduit-reason: no-upgrade\r\n") || len(r.app.Find(http2.FrameHeaders, 1)) != 0 {
			t.Errorf("early %v: client got %q, app %v", early, got, r.app.Frames)
		}
	}
}

// A WebSocket that waits for SETTINGS is given up with the connection, its client's or its server's; nothing stays.
func TestWebSocketThatWaits(t *testing.T) {
	r := newTowardH2(false)
	r.client.Send(wantsWS)
	r.n.Run()
	if r.cl.Active() != 1 || r.cl.Room() != 99 {
		t.Fatalf("%d active, room for %d", r.cl.Active(), r.cl.Room())
	}
	r.app.C.Abort()
	r.n.Run()
	if got := r.client.Take(); !strings.HasPrefix(got, "HTTP/1.1 502 ") || !strings.Contains(got, "conduit-reason: upstream-reset") || r.h.Losses != 1 {
		t.Errorf("client got %q, %d lost", got, r.h.Losses)
	}
	r = newTowardH2(false)
	r.client.Send(wantsWS)
	r.n.Run()
	r.client.C.Abort()
	r.n.Run()
	r.app.Settings(connects)
	r.n.Run()
	if r.h.Open != 0 || r.h.Log[0].Reason != mesh.ReasonDownstreamReset || len(r.app.Find(http2.FrameHeaders, 1)) != 0 || r.cl.Active() != 0 {
		t.Errorf("log %v, app got %v, %d active", r.h.Log, r.app.Frames, r.cl.Active())
	}
	r = newTowardH2(false) // a connection that is to go away
	r.client.Send(wantsWS)
	r.n.Run()
	r.cl.Drain()
	r.app.Settings(connects)
	r.n.Run()
	if r.h.Losses != 1 || r.cl.Active() != 0 || !r.app.Over() {
		t.Errorf("%d lost, %d active, connection over: %v", r.h.Losses, r.cl.Active(), r.app.Over())
	}
}

// A wish that the server may pass over is an ordinary request, with the method that it had.
func TestUpgradeTowardH2(t *testing.T) {
	for _, method := range []string{"GET", "POST"} {
		for _, link := range []bool{false, true} {
			r := newTowardH2(link)
			r.app.Settings()
			for id := uint32(1); id < 5; id += 2 {
				r.client.Send(method + " /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
				r.n.Run()
				f := r.app.Find(http2.FrameHeaders, id)
				if len(f) != 1 || r.app.Field(id, 0, ":method") != method || r.app.Field(id, 0, ":protocol") != "" || !f[0].Flags.Has(http2.FlagHeadersEndStream) {
					t.Fatalf("app got %v", f)
				}
				r.app.Headers(id, true, ":status", "426")
				r.n.Run()
				if got := r.client.Take(); got != "HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n" {
					t.Errorf("client got %q", got)
				}
			}
			r.cl.Drain()
			r.n.Run()
			if !r.app.Over() || len(r.app.Find(http2.FrameGoAway, 0)) != 1 || r.cl.Room() != 0 {
				t.Error("an idle client does not drain")
			}
		}
	}
}

// What was enabled stays so (RFC 8441, 3).
func TestExtendedConnectIsNotTakenBack(t *testing.T) {
	r := newTowardH2(false)
	r.app.Settings(connects)
	r.n.Run()
	r.app.Settings(http2.Setting{ID: 8, Val: 0})
	r.n.Run()
	if f := r.app.Find(http2.FrameGoAway, 0); len(f) != 1 || f[0].Code != http2.ErrCodeProtocol {
		t.Errorf("got %v", f)
	}
}
