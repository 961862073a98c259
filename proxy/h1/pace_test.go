package h1_test

import (
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/proxy/exchange"
)

// TestSlowBodies: what a client has announced it must send; anything else may take its time.
func TestSlowBodies(t *testing.T) {
	const sized, chunked = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, tt := range []struct {
		name, head, drip string // drip: sent every 10 s
		answer           string // of the app, at once
		stuck            bool   // the app takes nothing
		cut              bool
	}{
		{name: "silent", head: sized, cut: true},
		{name: "dripping", head: sized, drip: strings.Repeat("x", 100), cut: true},
		{name: "slow", head: sized, drip: strings.Repeat("x", 3000)},
		{name: "silent within a chunk", head: chunked + "ffff\r\nabc", cut: true},
		{name: "dripping within a chunk", head: chunked + "ffff\r\n", drip: "x", cut: true},
		{name: "silent within a chunk's size", head: chunked + "ff", cut: true},
		{name: "silent within trailers", head: chunked + "0\r\nx-", cut: true},
		{name: "silent between chunks", head: chunked + "3\r\nabc\r\n"},
		{name: "dripping chunks", head: chunked, drip: "1\r\nx\r\n"},
		{name: "the response has begun", head: sized, answer: "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx"},
		{name: "an interim response", head: sized, answer: "HTTP/1.1 100 Continue\r\n\r\n", cut: true},
		{name: "the server takes nothing", head: sized + strings.Repeat("x", 300<<10), stuck: true},
		{name: "complete", head: sized + strings.Repeat("x", 1000000)},
	} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		if tt.stuck {
			r.app.C.Pause()
			r.app.C.Room = 1 << 10
		}
		r.do(tt.head, tt.answer)
		for range 60 {
			r.client.Send(tt.drip)
			r.n.Advance(10 * time.Second)
		}
		got := r.client.Take()
		if cut := strings.HasPrefix(got, "HTTP/1.1 408 "); cut != tt.cut || cut != r.client.Over() || cut != (len(r.abuses) == 1) || cut != (r.h.Open == 0) {
			t.Errorf("%s: client got %.60q, over %v; abuses %v, open %d", tt.name, got, r.client.Over(), r.abuses, r.h.Open)
		}
		if tt.cut && !r.app.Over() {
			t.Errorf("%s: the server is left with half a request", tt.name)
		}
	}
}

// TestSlowBodyTakesItsTime: nobody is cut before he had 20 s.
func TestSlowBodyTakesItsTime(t *testing.T) {
	for _, wait := range []time.Duration{0, 9 * time.Second} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		r.do("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n12345678", "")
		r.n.Advance(wait)
		r.do("9", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
		r.do("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n", "")
		for range 19 {
			r.n.Advance(time.Second)
		}
		if len(r.abuses) > 0 || r.client.Over() {
			t.Errorf("cut after 19 s: %q", r.client.Take())
		}
		for range 12 {
			r.n.Advance(time.Second)
		}
		if len(r.abuses) != 1 {
			t.Error("not cut after 31 s")
		}
	}
}

// A silent tunnel is nobody's fault.
func TestSilentTunnel(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.do("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
	r.n.Advance(24 * time.Hour)
	if got, back := r.do("ping", "pong"); got != "ping" || back != "pong" || len(r.abuses) > 0 {
		t.Errorf("after a day: server got %q, client %q, abuses %v", got, back, r.abuses)
	}
}
