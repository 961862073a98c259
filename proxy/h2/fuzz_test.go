package h2_test

import (
	"testing"

	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h2"

	"golang.org/x/net/http2"
)

func frames(t *testing.T, in []byte, chunk int, internal bool) string {
	n := flowtest.New()
	a, b := n.Pair()
	client := exchangetest.NewPeer(a)
	sink := &exchangetest.Sink{Clock: n, Mute: true}
	h := &exchangetest.Handler{Up: func(*exchange.Stream) exchange.Upstream { return sink }}
	b.Chunk = chunk
	pool := exchange.NewPool()
	h2.NewServer(b, h, exchange.ServerOptions{Clock: n, Pool: pool, Internal: internal})
	client.Send(http2.ClientPreface + raw(4, 0, 0))
	client.C.Write(in)
	n.Run()
	if client.Got.Len() > 64<<10+2*len(in) {
		t.Fatalf("%q: %d bytes of answer", in, client.Got.Len())
	}
	client.C.Abort()
	n.Run()
	if h.Open != 0 || len(sink.Live) != 0 || pool.Held() != 0 || pool.Parked() != 0 {
		t.Fatalf("%q: %d streams stay open, %d bytes are held, %d parked", in, h.Open, pool.Held(), pool.Parked())
	}
	return sink.All()
}

func FuzzServer(f *testing.F) {
	req := string([]byte{0x82, 0x84, 0x86, 0x41, 1, 'h'})
	for _, s := range []string{
		raw(1, 5, 1, []byte(req)...), raw(1, 4, 1, []byte(req)...) + raw(0, 1, 1, 'a', 'b'),
		raw(1, 1, 1, 0x82, 0x84) + raw(9, 4, 1, 0x86), raw(1, 4, 1, []byte(req)...) + raw(1, 5, 1, 0, 1, 'x', 1, 'y'),
		raw(1, 5, 1, []byte(req)...) + raw(3, 0, 1, 0, 0, 0, 8), raw(4, 0, 0, 0, 4, 0, 0, 0, 1), raw(8, 0, 0, 0, 0, 0, 9),
		raw(6, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8), raw(7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0), raw(0, 8, 1, 1, 2, 3),
		raw(1, 4, 1, 0x02, 7, 'C', 'O', 'N', 'N', 'E', 'C', 'T', 0x41, 3, 'h', ':', '1') + raw(0, 0, 1, 'a'),
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s+s), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, internal bool) {
		if len(in) > 4<<10 {
			return
		}
		whole := frames(t, in, 0, internal)
		if got := frames(t, in, 1, internal); got != whole {
			t.Fatalf("%q byte by byte:\n%s\nwhole:\n%s", in, got, whole)
		}
	})
}

func FuzzClient(f *testing.F) {
	for _, s := range []string{
		raw(1, 5, 1, 0x88), raw(1, 4, 1, 0x88) + raw(0, 1, 1, 'o', 'k'), raw(1, 4, 1, 0x08, 3, '1', '0', '3') + raw(1, 5, 1, 0x88),
		raw(1, 4, 1, 0x88) + raw(1, 5, 1, 0, 1, 'x', 1, 'y'), raw(3, 0, 1, 0, 0, 0, 7), raw(7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
		raw(1, 0, 1, 0x88) + raw(9, 4, 1), raw(5, 4, 1, 0, 0, 0, 2), raw(8, 0, 1, 0, 0, 0, 0),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 4<<10 {
			return
		}
		for _, chunk := range []int{0, 1} {
			r := newRig(false)
			r.up.Chunk = chunk
			r.client.Headers(1, false, postReq...)
			r.client.Headers(3, true, getReq...)
			r.n.Run()
			r.app.Send(string(in))
			r.n.Run()
			r.app.C.Abort()
			r.client.C.Abort()
			r.n.Run()
			if r.h.Open != 0 || len(r.h.Log) != 2 || r.closed != 1 || r.pool.Held() != 0 || r.pool.Parked() != 0 {
				t.Fatalf("%q: open %d, log %v, %d bytes held", in, r.h.Open, r.h.Log, r.pool.Held())
			}
		}
	})
}
