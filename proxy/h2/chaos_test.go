package h2_test

import (
	"math/rand/v2"
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2"
)

// chaos drives both ends at random, within the protocol.
type chaos struct {
	*rig
	rnd      *rand.Rand
	next     uint32
	open     []uint32 // streams on which the client still sends
	answered map[uint32]bool
}

func (c *chaos) client1() {
	switch c.rnd.IntN(6) {
	case 0, 1:
		c.client.Headers(c.next, c.rnd.IntN(3) == 0, postReq...)
		c.open = append(c.open, c.next)
		c.next += 2
	case 2, 3:
		if id, ok := c.pick(); ok {
			c.client.Body(id, c.rnd.IntN(4) == 0, make([]byte, c.rnd.IntN(9000)))
		}
	case 4:
		if id, ok := c.pick(); ok {
			_ = c.client.F.WriteRSTStream(id, http2.ErrCodeCancel)
			c.client.Flush()
		}
	case 5:
		_ = c.client.F.WriteWindowUpdate(0, 1+c.rnd.Uint32N(50000))
		c.client.Flush()
	}
}

// pick takes a stream on which nothing more is sent afterwards: what was sent may have ended it.
func (c *chaos) pick() (uint32, bool) {
	if len(c.open) == 0 {
		return 0, false
	}
	i := c.rnd.IntN(len(c.open))
	id := c.open[i]
	c.open = append(c.open[:i], c.open[i+1:]...)
	return id, true
}

// settings has one end change what it allows the proxy.
func (c *chaos) settings() {
	window := http2.Setting{ID: http2.SettingInitialWindowSize, Val: c.rnd.Uint32N(100_000)}
	if c.rnd.IntN(2) == 0 {
		c.client.Settings(window)
		return
	}
	c.app.Settings(window, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.rnd.Uint32N(300)},
		http2.Setting{ID: http2.SettingHeaderTableSize, Val: c.rnd.Uint32N(2) * 4096})
}

func (c *chaos) server1() {
	f := c.app.Frames
	if len(f) == 0 {
		return
	}
	id := f[c.rnd.IntN(len(f))].ID
	if id == 0 || c.answered[id] {
		return
	}
	c.answered[id] = true
	switch c.rnd.IntN(5) {
	case 0:
		_ = c.app.F.WriteRSTStream(id, http2.ErrCodeRefusedStream)
		c.app.Flush()
	case 1:
		c.app.Headers(id, true, ":status", "204")
	default:
		c.app.Headers(id, false, ":status", "200")
		for range c.rnd.IntN(4) {
			c.app.Body(id, false, make([]byte, c.rnd.IntN(16000)))
		}
		switch c.rnd.IntN(3) {
		case 0:
			c.app.Body(id, true, nil)
		case 1:
			c.app.Headers(id, true, "grpc-status", "0")
		case 2:
			_ = c.app.F.WriteRSTStream(id, http2.ErrCodeInternal)
			c.app.Flush()
		}
	}
}

// TestChaos checks what must hold whatever happens: every stream ends once, and no byte of a connection window is lost.
func TestChaos(t *testing.T) {
	for seed := range uint64(60) {
		c := &chaos{rig: newRig(true), rnd: rand.New(rand.NewPCG(seed, 1)), next: 1, answered: map[uint32]bool{}}
		c.down.Chunk, c.up.Chunk = 1+c.rnd.IntN(5000), 1+c.rnd.IntN(5000)
		c.client.C.Room = 1 + c.rnd.IntN(100000)
		_ = c.app.F.WriteWindowUpdate(0, 1<<30)
		c.app.Flush()
		_ = c.client.F.WriteWindowUpdate(0, 1<<20)
		c.client.Flush()
		live := map[*exchange.Stream]bool{}
		c.h.OnLost = func(s *exchange.Stream, _ mesh.Reason) bool {
			if c.rnd.IntN(2) == 0 {
				return false
			}
			s.Forward(c.cl, nil)
			return true
		}
		c.h.OnRequest = func(s *exchange.Stream) {
			if live[s] = true; c.rnd.IntN(10) == 0 {
				s.Fail(503, mesh.ReasonOverload, "by chance")
				return
			}
			s.Forward(c.cl, nil)
		}
		for i := range 400 {
			if i%40 == 0 {
				c.settings()
			}
			c.client1()
			c.server1()
			if c.rnd.IntN(3) == 0 {
				c.n.Run()
			}
		}
		c.n.Run()
		for id := uint32(1); id < c.next; id += 2 { // end what is left
			_ = c.client.F.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		c.client.Flush()
		c.n.Run()
		if n := c.sv.Outstanding(); n != 0 {
			t.Errorf("seed %d: the server has lost %d bytes of its window", seed, n)
		}
		if n := c.cl.Outstanding(); n != 0 {
			t.Errorf("seed %d: the client has lost %d bytes of its window", seed, n)
		}
		if n := c.pool.Parked(); n != 0 {
			t.Errorf("seed %d: %d bytes are parked for nobody", seed, n)
		}
		if n := c.pool.Held(); n != c.sv.Kept() {
			t.Errorf("seed %d: %d bytes are held by nobody", seed, n)
		}
		if c.h.Open != 0 || len(c.h.Log) != int(c.next-1)/2 || c.cl.Active() != 0 {
			t.Errorf("seed %d: open %d, ended %d of %d, active %d", seed, c.h.Open, len(c.h.Log), (c.next-1)/2, c.cl.Active())
		}
		if len(exchangeErrors(c)) > 0 {
			t.Errorf("seed %d: %v", seed, exchangeErrors(c))
		}
	}
}

func exchangeErrors(c *chaos) []error { return append(c.client.Errs, c.app.Errs...) }

// TestServerRestartUnderUploads fails many uploads at once; what is in flight must not be taken for an attack.
func TestServerRestartUnderUploads(t *testing.T) {
	r := newRig(false)
	r.h.OnRequest = func(s *exchange.Stream) { s.Fail(503, mesh.ReasonConnect, "restarting") }
	const count = 900
	for i := range count {
		r.client.Headers(uint32(1+2*i), false, postReq...)
	}
	for range 3 {
		for i := range count {
			r.client.Body(uint32(1+2*i), false, []byte("in flight"))
		}
	}
	r.n.Run()
	if code, gone := r.goAway(t); gone {
		t.Errorf("GOAWAY %v", code)
	}
	if r.sv.Outstanding() != 0 || r.client.Field(2*count-1, 0, ":status") != "503" {
		t.Errorf("outstanding %d", r.sv.Outstanding())
	}
}
