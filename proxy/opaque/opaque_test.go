package opaque_test

import (
	"bytes"
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/opaque"
)

type rig struct {
	n           *flowtest.Net
	h           *exchangetest.Handler
	client, app *exchangetest.Peer
	down, up    *flowtest.Conn
	sv          *opaque.Server
	cl          *opaque.Client
	closed      int
	abuses      []mesh.Abuse
	changes     []bool
	sniffed     []string
}

func newRig(sniff func(p []byte) opaque.Verdict, hold bool) *rig {
	r := &rig{n: flowtest.New(), h: &exchangetest.Handler{}}
	var a, b *flowtest.Conn
	a, r.down = r.n.Pair()
	r.up, b = r.n.Pair()
	r.client, r.app = exchangetest.NewPeer(a), exchangetest.NewPeer(b)
	r.cl = opaque.NewClient(r.up, exchange.ClientOptions{Clock: r.n, OnChange: func(_ exchange.Upstream, ended bool, _ error) { r.changes = append(r.changes, ended) }})
	r.h.Up = func(*exchange.Stream) exchange.Upstream { return r.cl }
	if hold {
		r.h.OnRequest = func(*exchange.Stream) {}
	}
	fn := sniff
	if sniff != nil {
		fn = func(p []byte) opaque.Verdict {
			r.sniffed = append(r.sniffed, string(p))
			return sniff(p)
		}
	}
	r.sv = opaque.NewServer(r.down, r.h, exchange.ServerOptions{Clock: r.n, OnClose: func(error) { r.closed++ },
		OnViolation: func(v exchange.Violation) { r.abuses = append(r.abuses, v.Abuse) }},
		&exchange.Head{Method: "CONNECT", Authority: "192.0.2.2:80"}, fn)
	return r
}

func TestHalfClose(t *testing.T) {
	for _, serverFirst := range []bool{false, true} {
		r := newRig(nil, false)
		one, two := r.client, r.app
		if serverFirst {
			one, two = two, one
		}
		one.Send("hello")
		one.C.CloseWrite()
		r.n.Run()
		if two.Take() != "hello" || !two.HadEOF || two.Ended || r.h.Open != 1 {
			t.Fatalf("server first %v: half-close was not exact", serverFirst)
		}
		two.Send("answer")
		r.n.Run()
		if one.Take() != "answer" || one.HadEOF {
			t.Fatalf("server first %v: the other half is gone", serverFirst)
		}
		two.C.CloseWrite()
		r.n.Run()
		if !one.Ended || !two.Ended || one.Err != nil || two.Err != nil || r.h.Open != 0 || r.closed != 1 || len(r.changes) != 1 {
			t.Errorf("end: %v %v, open %d, closed %d", one.Err, two.Err, r.h.Open, r.closed)
		}
		if l := r.h.Log[0]; l.Reason != "" || l.ReqBytes+l.ResBytes != 11 || l.Status != 200 {
			t.Errorf("log %v", l)
		}
	}
}

// TestShed ends a connection that takes nothing of what comes.
func TestShed(t *testing.T) {
	r := newRig(nil, false)
	r.client.C.Room = 10
	r.client.C.Pause()
	r.app.Send(strings.Repeat("x", 300000))
	r.n.Run()
	if r.sv.Held() < 100000 || r.sv.Taken() > 200000 {
		t.Fatalf("held %d, taken %d", r.sv.Held(), r.sv.Taken())
	}
	r.sv.Shed()
	r.n.Run()
	if !r.down.IsRST || !r.app.IsReset() || r.closed != 1 || r.h.Open != 0 || len(r.abuses) != 1 || r.abuses[0] != mesh.AbuseUnread {
		t.Errorf("reset %v and %v, closed %d, open %d, abuses %v", r.down.IsRST, r.app.IsReset(), r.closed, r.h.Open, r.abuses)
	}
}

func TestReset(t *testing.T) {
	r := newRig(nil, false)
	r.client.Send("x")
	r.n.Run()
	r.client.C.Abort()
	r.n.Run()
	if r.app.Err == nil || r.h.Log[0].Reason != mesh.ReasonDownstreamReset || r.closed != 1 {
		t.Errorf("app %v, log %v", r.app.Err, r.h.Log)
	}
	r = newRig(nil, false)
	r.app.Send("x")
	r.n.Run()
	r.app.C.Abort()
	r.n.Run()
	if r.client.Err == nil || r.h.Log[0].Reason != mesh.ReasonUpstreamReset {
		t.Errorf("client %v, log %v", r.client.Err, r.h.Log)
	}
	n := flowtest.New()
	a, d := n.Pair()
	p := exchangetest.NewPeer(a)
	h := &exchangetest.Handler{OnRequest: func(s *exchange.Stream) { s.Fail(503, mesh.ReasonConnect, "no") }}
	opaque.NewServer(d, h, exchange.ServerOptions{Clock: n}, &exchange.Head{Method: "CONNECT"}, nil)
	n.Run()
	if p.Err == nil || p.Got.Len() != 0 || h.Log[0].Reason != mesh.ReasonConnect {
		t.Errorf("a failed dial: %v, log %v", p.Err, h.Log)
	}
}

func TestSniff(t *testing.T) {
	verdict := func(p []byte) opaque.Verdict {
		switch {
		case len(p) < 4:
			return opaque.More
		case string(p[:4]) == "GET ":
			return opaque.Leave
		}
		return opaque.Stay
	}
	r := newRig(verdict, false) // opaque after all
	r.client.Send("SS")
	r.n.Run()
	r.client.Send("H-2")
	r.client.Send("!")
	r.n.Run()
	if strings.Join(r.sniffed, "|") != "SS|SSH-2!" || r.app.Take() != "SSH-2!" {
		t.Errorf("stay: sniffed %q", r.sniffed)
	}
	r = newRig(verdict, false) // too short to tell, and over
	r.client.Send("ab")
	r.client.C.CloseWrite()
	r.n.Run()
	if r.app.Take() != "ab" || !r.app.HadEOF {
		t.Error("EOF does not settle")
	}
	r = newRig(verdict, false) // the server speaks first
	r.client.Send("ab")
	r.n.Run()
	r.app.Send("220 ready")
	r.n.Run()
	r.client.Send("GET x")
	r.n.Run()
	if len(r.sniffed) != 1 || r.app.Take() != "abGET x" || r.client.Take() != "220 ready" {
		t.Errorf("server first: sniffed %q", r.sniffed)
	}
	r = newRig(verdict, false) // leaves
	next := &exchangetest.Peer{}
	r.client.Send("GE")
	r.n.Run()
	r.client.Send("T /")
	r.n.Run()
	r.down.SetReceiver(next)
	r.client.Send("more")
	r.n.Run()
	if strings.Join(r.sniffed, "|") != "GE|GET /" || next.Take() != "more" || r.closed != 0 || r.client.Over() {
		t.Errorf("leave: sniffed %q, closed %d", r.sniffed, r.closed)
	}
	if l := r.h.Log; len(l) != 1 || l[0].Reason != "" || !r.app.HadEOF || r.app.Err != nil {
		t.Errorf("leave: log %v, app %v", l, r.app.Err)
	}
}

func TestBackpressure(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	for _, up := range []bool{true, false} {
		r := newRig(nil, false)
		from, to, in, out := r.client, r.app, r.down, r.up
		if !up {
			from, to, in, out = r.app, r.client, r.up, r.down
		}
		to.C.Room, in.Room, in.Chunk = 32<<10, 32<<10, 32<<10
		to.C.Pause()
		from.C.Write(body)
		r.n.Run()
		if !in.Paused || in.Received > 400<<10 || out.PeakBacklog > flow.HighWater+32<<10 {
			t.Fatalf("up %v: paused %v, took %d, backlog %d", up, in.Paused, in.Received, out.PeakBacklog)
		}
		to.C.Resume()
		from.C.CloseWrite()
		r.n.Run()
		if !bytes.Equal(to.Got.Bytes(), body) || !to.HadEOF {
			t.Errorf("up %v: got %d", up, to.Got.Len())
		}
	}
}

func TestWaitsForUpstream(t *testing.T) {
	r := newRig(nil, true)
	var s *exchange.Stream
	r.h.OnRequest = func(x *exchange.Stream) { s = x }
	a, d := r.n.Pair()
	client := exchangetest.NewPeer(a)
	d.Room, d.Chunk = 16<<10, 16<<10
	opaque.NewServer(d, r.h, exchange.ServerOptions{Clock: r.n}, &exchange.Head{Method: "CONNECT"}, nil)
	client.C.Write(make([]byte, 1<<20))
	r.n.Run()
	if !d.Paused || d.Received > 128<<10 {
		t.Fatalf("paused %v after %d", d.Paused, d.Received)
	}
	s.Forward(r.cl, nil)
	client.C.CloseWrite()
	r.n.Run()
	if r.app.Got.Len() != 1<<20 || !r.app.HadEOF {
		t.Errorf("app got %d", r.app.Got.Len())
	}
}

func TestClientLifecycle(t *testing.T) {
	r := newRig(nil, true) // nothing is sent
	if r.cl.Room() != 1 || r.cl.Active() != 0 {
		t.Errorf("room %d, active %d", r.cl.Room(), r.cl.Active())
	}
	r.cl.Drain()
	r.n.Run()
	if r.cl.Room() != 0 || !r.app.Over() || r.app.Err != nil || len(r.changes) != 1 {
		t.Errorf("drained: room %d, over %v, changes %v", r.cl.Room(), r.app.Over(), r.changes)
	}
	r = newRig(nil, false)
	r.client.Send("x")
	r.n.Run()
	if r.cl.Room() != 0 || r.cl.Active() != 1 {
		t.Errorf("room %d, active %d", r.cl.Room(), r.cl.Active())
	}
	r.cl.Drain()
	r.n.Run()
	if r.app.Over() || r.h.Open != 1 {
		t.Error("drain cut the stream")
	}
	r.cl.Close()
	r.n.Run()
	if r.app.Err == nil || r.client.Err == nil || r.h.Open != 0 {
		t.Errorf("closed: %v %v", r.app.Err, r.client.Err)
	}
}

func TestSettle(t *testing.T) {
	n := flowtest.New()
	a, d := n.Pair()
	up, b := n.Pair()
	client, app := exchangetest.NewPeer(a), exchangetest.NewPeer(b)
	cl := opaque.NewClient(up, exchange.ClientOptions{Clock: n})
	h := &exchangetest.Handler{Up: func(*exchange.Stream) exchange.Upstream { return cl }}
	sv := opaque.NewServer(d, h, exchange.ServerOptions{Clock: n}, &exchange.Head{Method: "CONNECT"},
		func([]byte) opaque.Verdict { return opaque.More })
	client.Send("half a w")
	n.Run()
	if !sv.Sniffing() || app.Got.Len() != 0 {
		t.Error("forwarded while undecided")
	}
	sv.Settle()
	client.Send("ord")
	n.Run()
	if got := app.Take(); sv.Sniffing() || got != "half a word" {
		t.Errorf("app got %q", got)
	}
}
