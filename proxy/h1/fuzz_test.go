package h1_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h1"
)

// serve feeds in to a server in pieces, and returns the requests that went upstream and the answer.
func serve(t *testing.T, in []byte, chunk int) (string, string) {
	n := flowtest.New()
	a, b := n.Pair()
	client := exchangetest.NewPeer(a)
	sink := &exchangetest.Sink{Clock: n}
	h := &exchangetest.Handler{Up: func(*exchange.Stream) exchange.Upstream { return sink }}
	b.Chunk = chunk
	pool := exchange.NewPool()
	h1.NewServer(b, h, exchange.ServerOptions{Clock: n, Pool: pool})
	client.C.Write(in)
	client.C.CloseWrite()
	n.Run()
	n.Advance(3 * time.Second)
	client.C.Abort()
	n.Run()
	if h.Open != 0 || len(sink.Live) != 0 || pool.Held() != 0 {
		t.Fatalf("%q: %d streams stay open, %d bytes are held", in, h.Open, pool.Held())
	}
	if heads := bytes.Count(in, []byte("\r\n\r\n")); len(sink.Seen) > heads {
		t.Fatalf("%q: %d requests from %d heads", in, len(sink.Seen), heads)
	}
	return sink.All(), client.Take()
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		get, get + get, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" + get,
		"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n" + get,
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.0\r\n\r\n", "GET http://h/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "\r\n\r\n" + get,
		"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nabc", "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\nabc",
		"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", "GET / HTTP/1.1\nHost: h\n\n", "\x16\x03\x01\x02\x00\x01",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 4<<10 {
			return
		}
		seen, got := serve(t, in, 0)
		for _, chunk := range []int{1, 3} {
			if s, g := serve(t, in, chunk); s != seen || g != got {
				t.Fatalf("%q in pieces of %d:\n%s%q\nwhole:\n%s%q", in, chunk, s, g, seen, got)
			}
		}
	})
}

func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		ok200, ok200 + ok200, "HTTP/1.1 100 Continue\r\n\r\n" + ok200, "HTTP/1.1 204 No\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: v\r\n\r\n", "HTTP/1.1 101 S\r\nupgrade: websocket\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 200\r\n\r\n", "SSH-2.0-x\r\n",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, upgrade bool) {
		if len(in) > 4<<10 {
			return
		}
		req := get
		if upgrade {
			req = "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
		}
		var first string
		for i, chunk := range []int{0, 1, 3} {
			r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
			r.up.Chunk = chunk
			r.do(req, string(in))
			r.app.C.Close()
			r.n.Run()
			r.client.C.Abort()
			r.n.Run()
			if r.h.Open != 0 || len(r.h.Log) != 1 || len(r.h.Log[0].Reason) > 0 && r.h.Log[0].Status == 0 {
				t.Fatalf("%q: open %d, log %v", in, r.h.Open, r.h.Log)
			}
			sum := fmt.Sprint(r.h.Log[0].Status, r.h.Log[0].Reason, r.h.Log[0].ResBytes, r.h.Log[0].Trailers)
			if i > 0 && sum != first && r.h.Log[0].Reason == "" {
				t.Fatalf("%q in pieces of %d: %s, whole: %s", in, chunk, sum, first)
			}
			first = sum
		}
	})
}
