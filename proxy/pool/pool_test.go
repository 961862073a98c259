package pool

import (
	"errors"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h1"
)

// rig is a pool whose dials the test finishes by hand, and HTTP/1 clients whose requests go through it.
type rig struct {
	t      *testing.T
	n      *flowtest.Net
	pool   *Pool
	dials  []func(Dialed)
	stops  int
	conns  int
	apps   []*exchangetest.Peer
	fails  []mesh.Reason
	grants []Grant
}

func newRig(t *testing.T, o Options) *rig {
	r := &rig{t: t, n: flowtest.New()}
	o.Clock = r.n
	o.OnConns = func(d int) { r.conns += d }
	o.Dial = func(done func(Dialed)) func() {
		r.dials = append(r.dials, done)
		return func() { r.stops++ }
	}
	if o.MaxConns == 0 {
		o.MaxConns = 8
	}
	if o.MaxWaiting == 0 {
		o.MaxWaiting = 8
	}
	o.Wait = 5 * time.Second
	r.pool = New(o)
	return r
}

// request sends a request of a new client through the pool; the answer, if any, arrives at the peer returned.
func (r *rig) request() *exchangetest.Peer {
	a, b := r.n.Pair()
	p := exchangetest.NewPeer(a)
	h := &exchangetest.Handler{OnRequest: func(s *exchange.Stream) {
		r.pool.Wait(func(g Grant) {
			r.grants = append(r.grants, g)
			if g.Err != nil {
				r.fails = append(r.fails, g.Reason)
				s.Fail(503, g.Reason, g.Err.Error())
				return
			}
			s.Forward(g.Up, nil)
		})
	}}
	h1.NewServer(b, h, exchange.ServerOptions{Clock: r.n})
	p.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	r.n.Run()
	return p
}

// dialed finishes the oldest dial.
func (r *rig) dialed(p mesh.Protocol) {
	r.t.Helper()
	if len(r.dials) == 0 {
		r.t.Fatal("nothing is being dialled")
	}
	a, b := r.n.Pair()
	r.apps = append(r.apps, exchangetest.NewPeer(a))
	done := r.dials[0]
	r.dials = r.dials[1:]
	done(Dialed{Conn: b, Protocol: p})
	r.n.Run()
}

func (r *rig) answer(app int) {
	r.apps[app].Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	r.n.Run()
}

func TestHTTP1NeedsAConnectionForEachStream(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.HTTP1})
	r.request()
	r.request()
	if len(r.dials) != 2 {
		t.Fatalf("%d dials for 2 streams", len(r.dials))
	}
	r.dialed(mesh.HTTP1)
	r.dialed(mesh.HTTP1)
	if r.pool.Active() != 2 || r.conns != 2 || r.pool.Get() != nil {
		t.Errorf("active %d, connections %d", r.pool.Active(), r.conns)
	}
	r.answer(0)
	r.request() // takes the connection that has become free
	if len(r.dials) != 0 || r.conns != 2 {
		t.Errorf("dialled again: %d", len(r.dials))
	}
}

func TestHTTP2SharesOneConnection(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.HTTP2})
	for range 5 {
		r.request()
	}
	if len(r.dials) != 1 {
		t.Fatalf("%d dials", len(r.dials))
	}
	r.dialed(mesh.HTTP2)
	if r.pool.Active() != 5 || r.conns != 1 {
		t.Errorf("active %d on %d connections", r.pool.Active(), r.conns)
	}
}

// A handshake that ends in HTTP/1.1 after all brings a dial for everybody who waits.
func TestNegotiatedHTTP1(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.Detect})
	for range 3 {
		r.request()
	}
	if len(r.dials) != 1 {
		t.Fatalf("%d dials before the protocol is known", len(r.dials))
	}
	r.dialed(mesh.HTTP1)
	if len(r.dials) != 2 || r.pool.Active() != 3 {
		t.Errorf("%d dials, %d active", len(r.dials), r.pool.Active())
	}
}

func TestBounds(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.HTTP1, MaxConns: 2, MaxWaiting: 3})
	for range 5 {
		r.request()
	}
	if len(r.dials) != 2 {
		t.Errorf("%d dials, bound 2", len(r.dials))
	}
	if len(r.fails) != 2 || r.fails[0] != mesh.ReasonOverload {
		t.Errorf("failures %v, want 2 of overload", r.fails)
	}
}

func TestFailedDial(t *testing.T) {
	for _, c := range []struct {
		p    mesh.Protocol
		want int // who fails
	}{{mesh.HTTP1, 1}, {mesh.HTTP2, 2}} {
		r := newRig(t, Options{Protocol: c.p})
		r.request()
		r.request()
		r.dials[0](Dialed{Reason: mesh.ReasonConnect, Err: errors.New("refused")})
		if len(r.fails) != c.want || r.fails[0] != mesh.ReasonConnect {
			t.Errorf("%s: failures %v", c.p, r.fails)
		}
	}
}

func TestWaitEnds(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.HTTP2})
	r.request()
	r.n.Advance(6 * time.Second)
	if len(r.fails) != 1 || r.fails[0] != mesh.ReasonConnectTimeout || r.pool.Active() != 0 {
		t.Errorf("failures %v", r.fails)
	}
	cancelled := r.pool.Wait(func(Grant) { t.Error("called after Cancel") })
	cancelled.Cancel()
	cancelled.Cancel()
	r.dialed(mesh.HTTP2)
}

func TestSweepClosesTheIdle(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.HTTP1})
	r.request()
	r.dialed(mesh.HTTP1)
	r.pool.Sweep()
	r.pool.Sweep()
	if r.conns != 1 {
		t.Fatal("a busy connection was closed")
	}
	r.answer(0)
	r.pool.Sweep() // it has served since
	r.n.Run()
	if r.conns != 1 {
		t.Fatal("closed though it was just in use")
	}
	r.pool.Sweep()
	r.n.Run()
	if r.conns != 0 || !r.pool.Empty() {
		t.Errorf("%d connections after two sweeps", r.conns)
	}
}

func TestServerClosesIdleConnection(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.HTTP1})
	r.request()
	r.dialed(mesh.HTTP1)
	r.answer(0)
	r.apps[0].C.CloseWrite()
	r.n.Run()
	if r.pool.Get() != nil || r.conns != 0 {
		t.Error("a connection that the server has closed is still offered")
	}
}

func TestClose(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.HTTP1})
	client := r.request()
	r.dialed(mesh.HTTP1)
	r.request()
	r.pool.Close()
	r.n.Run()
	if r.stops != 1 || len(r.fails) != 1 || r.fails[0] != mesh.ReasonDraining || !r.pool.Closed() {
		t.Errorf("%d dials stopped, failures %v", r.stops, r.fails)
	}
	if client.Got.Len() == 0 && client.Err == nil {
		t.Error("the client of an active stream learnt nothing")
	}
	if r.conns != 0 {
		t.Errorf("%d connections left", r.conns)
	}
}

// A wait tells how much of it was the dial of the connection that ended it.
func TestGrantTellsTheDial(t *testing.T) {
	r := newRig(t, Options{Protocol: mesh.HTTP1, MaxConns: 1})
	r.request()
	r.n.Advance(time.Second)
	r.request() // will wait for the first one's end
	r.n.Advance(2 * time.Second)
	r.dialed(mesh.HTTP1)
	r.n.Advance(time.Second)
	r.answer(0)
	if len(r.grants) != 2 || r.grants[0].Dial != 3*time.Second || r.grants[1].Dial != 2*time.Second {
		t.Errorf("of two waits, the dial took %+v", r.grants)
	}
	r.request()
	r.answer(0)
	if len(r.grants) != 3 || r.grants[2].Dial != 0 {
		t.Errorf("a wait for a connection that was open: %+v", r.grants)
	}
	f := newRig(t, Options{Protocol: mesh.HTTP1})
	f.request()
	f.n.Advance(time.Second)
	f.dials[0](Dialed{Reason: mesh.ReasonConnect, Err: errors.New("refused")})
	if len(f.grants) != 1 || f.grants[0].Dial != time.Second {
		t.Errorf("a dial that failed: %+v", f.grants)
	}
}
