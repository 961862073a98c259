package pool

import (
	"errors"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h2"

	"golang.org/x/net/http2"
)

// few is an upstream that serves few streams at a time on a connection and refuses the others.
type few struct {
	n     *flowtest.Net
	limit int
	conns []*exchangetest.H2
	seen  map[*exchangetest.H2]int
	open  map[*exchangetest.H2][]uint32
	over  int // streams refused
}

// step looks at what has come; it reports whether anything had.
func (f *few) step() (moved bool) {
	for _, c := range f.conns {
		for ; f.seen[c] < len(c.Frames); f.seen[c]++ {
			fr := c.Frames[f.seen[c]]
			if fr.Type != http2.FrameHeaders {
				continue
			}
			moved = true
			if len(f.open[c]) < f.limit {
				f.open[c] = append(f.open[c], fr.ID)
				continue
			}
			f.over++
			_ = c.F.WriteRSTStream(fr.ID, http2.ErrCodeRefusedStream)
			c.Flush()
		}
	}
	f.n.Run()
	return moved
}

// answer ends every stream that is being served.
func (f *few) answer() {
	for _, c := range f.conns {
		for _, id := range f.open[c] {
			c.Headers(id, true, ":status", "204")
		}
		f.open[c] = nil
	}
	f.n.Run()
}

// An upstream that allows few streams is asked for more only once, before it has said so: connections made later know.
func TestStreamLimitIsRemembered(t *testing.T) {
	n := flowtest.New()
	f := &few{n: n, limit: 10, seen: map[*exchangetest.H2]int{}, open: map[*exchangetest.H2][]uint32{}}
	var dials []func(Dialed)
	p := New(Options{Clock: n, Protocol: mesh.HTTP2, MaxConns: 4, MaxWaiting: 100, Wait: time.Minute,
		Dial: func(done func(Dialed)) func() { dials = append(dials, done); return func() {} }})
	attempts := map[*exchange.Stream]int{}
	fails := 0
	send := func(s *exchange.Stream) {
		attempts[s]++
		p.Wait(func(g Grant) {
			if g.Err != nil {
				fails++
				s.Fail(503, mesh.ReasonOverload, g.Err.Error())
				return
			}
			s.Forward(g.Up, nil)
		})
	}
	h := &exchangetest.Handler{OnRequest: send, OnLost: func(s *exchange.Stream, _ mesh.Reason) bool {
		if attempts[s] > 2 {
			return false
		}
		send(s)
		return true
	}}
	a, b := n.Pair()
	h2.NewServer(b, h, exchange.ServerOptions{Clock: n})
	client := exchangetest.NewH2(a, true)
	client.Settings()
	const count = 100
	for i := range count {
		client.Headers(uint32(1+2*i), true, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "h")
	}
	n.Run()
	for round := 0; h.Open > 0 && round < 100; round++ {
		for len(dials) > 0 {
			x, y := n.Pair()
			done := dials[0]
			dials = dials[1:]
			app := exchangetest.NewH2(x, false)
			f.conns = append(f.conns, app)
			done(Dialed{Conn: y, Protocol: mesh.HTTP2})
			app.Settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(f.limit)})
			n.Run()
			for f.step() {
			}
		}
		f.answer()
		for f.step() {
		}
	}
	if h.Open != 0 || fails != 0 || f.over > count-f.limit {
		t.Errorf("%d streams open, %d turned away, %d refused by the upstream", h.Open, fails, f.over)
	}
	for _, r := range h.Log {
		if r.Status != 204 {
			t.Fatalf("a request was answered with %d, %q", r.Status, r.Reason)
		}
	}
}

// Who waits in vain is told what for.
func TestReasonOfWaiting(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.HTTP1, MaxConns: 1})
	r.request()
	r.request()
	r.dialed(mesh.HTTP1)
	r.n.Advance(6 * time.Second)
	if len(r.fails) != 1 || r.fails[0] != mesh.ReasonOverload {
		t.Errorf("failures %v: the connection is there, and busy", r.fails)
	}
}

// Where this process lacks what a connection needs, streams share those that there are, and the next is dialled when it may
// succeed.
func TestShortage(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.HTTP1})
	lacking := func() {
		t.Helper()
		done := r.dials[0]
		r.dials = r.dials[1:]
		done(Dialed{Reason: mesh.ReasonOverload, Err: errors.New("no descriptor")})
		r.n.Run()
	}
	first := r.request()
	r.dialed(mesh.HTTP1)
	second, third := r.request(), r.request()
	lacking()
	lacking()
	r.answer(0)
	r.answer(0)
	if first.Take() == "" || second.Take() == "" || third.Take() != "" || len(r.dials)+len(r.fails) != 0 {
		t.Fatalf("%d dials at once, failed %v", len(r.dials), r.fails)
	}
	r.request()
	r.n.Advance(retryAfter)
	if len(r.dials) != 1 {
		t.Fatalf("%d dials after a while, for two streams", len(r.dials))
	}
	lacking()
	r.n.Advance(retryAfter)
	r.dialed(mesh.HTTP1)
	if len(r.fails) != 0 || r.conns != 2 || r.pool.Active() != 2 {
		t.Errorf("%d connections, %d streams, failed %v", r.conns, r.pool.Active(), r.fails)
	}
}

// A stream that needs the first connection has it once others have given something up, or fails.
func TestOthersSpareOne(t *testing.T) {
	other := newRig(t, Options{Protocol: mesh.HTTP1})
	other.request()
	other.dialed(mesh.HTTP1)
	other.request()
	other.dialed(mesh.HTTP1)
	other.answer(0)
	r := newRig(t, Options{Protocol: mesh.HTTP1, Lacking: func(error) bool { return other.pool.Spare() }})
	r.request()
	lacking := Dialed{Reason: mesh.ReasonOverload, Err: errors.New("no descriptor")}
	r.dials[0](lacking)
	other.n.Run()
	if len(r.fails) != 0 || other.conns != 1 {
		t.Fatalf("failed %v, others have %d connections", r.fails, other.conns)
	}
	r.n.Advance(retryAfter)
	r.dials[1](lacking)
	if len(r.fails) != 1 || other.conns != 1 {
		t.Errorf("failed %v, others have %d connections", r.fails, other.conns)
	}
}
