package h2_test

import (
	"testing"

	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/h2"

	"golang.org/x/net/http2"
)

// connWindow is what the application may still send on its connection.
func (r *rig) connWindow(sent int) int {
	w := 65535 - sent
	for _, f := range r.app.Find(http2.FrameWindowUpdate, 0) {
		w += int(f.Inc)
	}
	return w
}

// another is a second client of the same proxy.
func (r *rig) another() *exchangetest.H2 {
	a, b := r.n.Pair()
	h2.NewServer(b, r.h, exchange.ServerOptions{Clock: r.n, Pool: r.pool})
	c := exchangetest.NewH2(a, true)
	c.Settings()
	r.n.Run()
	return c
}

// respond answers a stream of the application with size bytes, which fit the stream's window.
func (r *rig) respond(id uint32, size int) {
	r.app.Headers(id, false, ":status", "200")
	for size > 0 {
		k := min(size, 16384)
		size -= k
		r.app.Body(id, size == 0, make([]byte, k))
	}
	r.n.Run()
}

// Clients that take nothing do not stall the others on the same upstream connection: what waits for them is bounded by the
// windows of their streams, not by that of the connection.
func TestSlowReadersStallNobodyElse(t *testing.T) {
	r := newRig(false)
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	const size = 256 << 10
	id, sent := uint32(1), 0
	for ; id < 68; id += 2 { // 34 streams hold 8.5 MiB, the connection's window is 4 MiB
		r.client.Headers(id, true, getReq...)
		r.n.Run()
		if r.connWindow(sent) < size {
			t.Fatalf("stream %d: the connection's window is down to %d", id, r.connWindow(sent))
		}
		r.respond(id, size)
		sent += size
	}
	fast := r.another()
	fast.Headers(1, true, getReq...)
	r.n.Run()
	r.respond(id, 60_000)
	if b, end := fast.Bytes(1); len(b) != 60_000 || !end {
		t.Errorf("the fast client got %d bytes, end %v", len(b), end)
	}
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
	_ = r.client.F.WriteWindowUpdate(0, 1<<30)
	r.client.Flush()
	r.n.Run()
	if b, end := r.client.Bytes(67); len(b) != size || !end || r.h.Open != 0 {
		t.Errorf("the slow client got %d bytes in the end, %d open", len(b), r.h.Open)
	}
	if got := r.connWindow(sent + 60_000); got < 3<<20 || r.pool.Parked() != 0 {
		t.Errorf("window %d, %d bytes parked after all", got, r.pool.Parked())
	}
	r.check(t)
}

// The shard bounds what waits for all its connections, and gets all of it back.
func TestWaitingBytesAreBounded(t *testing.T) {
	r := newRig(false)
	const all = 64 << 20
	if n := r.pool.Park(2 * all); n != all {
		t.Fatalf("the shard has room for %d bytes", n)
	}
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	window, sent := r.connWindow(0), 0
	const size = 256 << 10
	for id := uint32(1); r.connWindow(sent) >= size; id += 2 {
		r.client.Headers(id, true, getReq...)
		r.n.Run()
		r.respond(id, size)
		sent += size
	}
	if sent > window {
		t.Errorf("%d bytes came through a window of %d", sent, window)
	}
	r.client.C.Abort()
	r.n.Run()
	if r.pool.Parked() != all || r.connWindow(sent) < window/2 {
		t.Errorf("%d bytes parked after the client's end, window %d", r.pool.Parked()-all, r.connWindow(sent))
	}
}

// The same towards a client: an upload that its server does not take leaves the connection to the others.
func TestSlowServerStallsNoOtherUpload(t *testing.T) {
	r := newRig(false)
	r.app.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	r.n.Run()
	window := func(sent int) int {
		w := 65535 - sent
		for _, f := range r.client.Find(http2.FrameWindowUpdate, 0) {
			w += int(f.Inc)
		}
		return w
	}
	sent := 0
	for id := uint32(1); id < 50; id += 2 {
		r.client.Headers(id, false, postReq...)
		for range 15 {
			r.client.Body(id, false, make([]byte, 16384))
			sent += 16384
		}
		r.n.Run()
		if window(sent) < 256<<10 {
			t.Fatalf("stream %d: the connection's window is down to %d", id, window(sent))
		}
	}
	r.app.C.Abort()
	r.n.Run()
	if r.pool.Parked() != 0 || r.h.Open != 0 {
		t.Errorf("%d bytes are parked, %d streams open after the server's end", r.pool.Parked(), r.h.Open)
	}
}

// Streams that were begun at once, before anybody could know that their client would take nothing, are more than a
// connection is given one after the other; they stall nobody, either.
func TestManySlowReadersAtOnce(t *testing.T) {
	r := newRig(false)
	r.app.Settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000})
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	const size, count = 256 << 10, 120 // 30 MiB
	for i := range count {
		r.client.Headers(uint32(1+2*i), true, getReq...)
	}
	r.n.Run()
	fast := r.another()
	fast.Headers(1, true, getReq...)
	r.n.Run()
	sent := 0
	for i := range count {
		if r.connWindow(sent) < size {
			t.Fatalf("after %d streams the connection's window is down to %d", i, r.connWindow(sent))
		}
		r.respond(uint32(1+2*i), size)
		sent += size
	}
	r.respond(2*count+1, 60_000)
	if b, end := fast.Bytes(1); len(b) != 60_000 || !end {
		t.Errorf("the fast client got %d bytes, end %v", len(b), end)
	}
}
