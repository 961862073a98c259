package front

import (
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h1"
	"conduit.io/conduit/proxy/opaque"
)

// rig is a connection on its way to a codec; opaque streams go to server, requests are recorded.
type rig struct {
	n      *flowtest.Net
	client *exchangetest.Peer
	server *exchangetest.Peer
	f      *Front
	seen   []int // Major of each stream
	chosen []mesh.Protocol
	closed int
}

func start(o Options) *rig {
	r := &rig{n: flowtest.New()}
	a, b := r.n.Pair()
	r.client = exchangetest.NewPeer(a)
	o.Handler = &exchangetest.Handler{OnRequest: func(s *exchange.Stream) {
		r.seen = append(r.seen, s.Req.Major)
		if s.Req.Major != 0 {
			s.Respond(200, nil, []byte("answer"))
			return
		}
		x, y := r.n.Pair()
		r.server = exchangetest.NewPeer(x)
		s.Forward(opaque.NewClient(y, exchange.ClientOptions{Clock: r.n}), nil)
	}}
	o.Server = exchange.ServerOptions{Clock: r.n, OnClose: func(error) { r.closed++ }}
	o.Chosen = func(p mesh.Protocol) { r.chosen = append(r.chosen, p) }
	r.f = Serve(b, o)
	return r
}

const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

func (r *rig) last() mesh.Protocol {
	if len(r.chosen) == 0 {
		return ""
	}
	return r.chosen[len(r.chosen)-1]
}

func TestBytesThatAreThereDecide(t *testing.T) {
	for in, want := range map[string]mesh.Protocol{
		request: mesh.HTTP1, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": mesh.HTTP2, "\x16\x03\x01": mesh.Opaque,
	} {
		r := start(Options{Wait: time.Second})
		r.client.Send(in)
		r.n.Run()
		if r.last() != want || r.f.Undecided() {
			t.Errorf("%q: chose %v", in, r.chosen)
		}
		if want != mesh.Opaque && r.server != nil {
			t.Errorf("%q: an opaque stream was opened", in)
		}
	}
}

func TestSilenceOpensAStreamAtOnce(t *testing.T) {
	r := start(Options{})
	r.n.Advance(0)
	r.n.Advance(0)
	if r.server == nil || !r.f.Undecided() {
		t.Fatal("no opaque stream while nobody speaks")
	}
	r.client.Send(request)
	r.n.Run()
	if r.last() != mesh.HTTP1 || len(r.seen) != 2 || r.client.Got.Len() == 0 {
		t.Errorf("chose %v, streams %v, client got %q", r.chosen, r.seen, r.client.Got.String())
	}
	if r.server.Got.Len() != 0 || !r.server.HadEOF && !r.server.Ended {
		t.Errorf("the unused stream: %q", r.server.Got.String())
	}
}

func TestServerFirstDecides(t *testing.T) {
	r := start(Options{})
	r.n.Advance(0)
	r.n.Advance(0)
	r.server.Send("220 ready\r\n")
	r.n.Run()
	r.client.Send(request) // bytes now, whatever they look like
	r.n.Run()
	if r.f.Undecided() || r.server.Got.String() != request || r.client.Got.String() != "220 ready\r\n" || len(r.seen) != 1 {
		t.Errorf("server got %q, streams %v", r.server.Got.String(), r.seen)
	}
}

// An HTTP/2 server that sends its SETTINGS first does not make the connection opaque.
func TestServerSettingsFirst(t *testing.T) {
	const settings = "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"
	r := start(Options{})
	r.n.Advance(0)
	r.n.Advance(0)
	r.server.Send(settings)
	r.n.Run()
	if !r.f.Undecided() || r.client.Got.Len() != 0 {
		t.Fatal("the server's SETTINGS decided")
	}
	r.client.Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	r.n.Run()
	if r.last() != mesh.HTTP2 || !r.server.Ended {
		t.Errorf("chose %v", r.chosen)
	}
	for _, client := range []string{"", "\x16\x03\x01", "PING"} { // it was something else after all
		r := start(Options{})
		r.n.Advance(0)
		r.n.Advance(0)
		r.server.Send(settings)
		r.client.Send(client)
		r.n.Run()
		r.n.Advance(time.Second)
		if r.client.Got.String() != settings || r.server.Got.String() != client {
			t.Errorf("%q: client got %q, server %q", client, r.client.Got.String(), r.server.Got.String())
		}
		r.server.Send(" and more")
		r.n.Run()
		if r.client.Got.String() != settings+" and more" {
			t.Errorf("%q: client got %q", client, r.client.Got.String())
		}
	}
}

func TestWaitForAKnownClient(t *testing.T) {
	r := start(Options{Wait: 50 * time.Millisecond})
	r.n.Advance(49 * time.Millisecond)
	if r.server != nil {
		t.Fatal("did not wait")
	}
	r.n.Advance(time.Millisecond)
	r.n.Advance(0)
	if r.server == nil {
		t.Error("waited too long")
	}
}

func TestClientFirstIsWaitedFor(t *testing.T) {
	r := start(Options{ClientFirst: true})
	r.n.Advance(4 * time.Minute)
	r.client.Send("GE")
	r.n.Run()
	r.n.Advance(9 * time.Second)
	if len(r.seen) != 0 {
		t.Fatal("a stream was opened before the client had finished a word")
	}
	r.client.Send(request[2:])
	r.n.Run()
	if r.last() != mesh.HTTP1 {
		t.Errorf("chose %v", r.chosen)
	}
	r = start(Options{ClientFirst: true})
	r.client.Send("\x16\x03\x01hello")
	r.n.Run()
	if r.last() != mesh.Opaque || r.server.Got.String() != "\x16\x03\x01hello" {
		t.Errorf("TLS where HTTP was declared: chose %v", r.chosen)
	}
}

func TestIndecisionEnds(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Second} {
		r := start(Options{Wait: wait})
		r.n.Advance(0)
		r.n.Advance(0)
		r.client.Send("PING")
		r.n.Run()
		r.n.Advance(undecided)
		if r.last() != mesh.Opaque || r.server == nil || r.server.Got.String() != "PING" {
			t.Errorf("wait %v: chose %v", wait, r.chosen)
		}
	}
}

func TestClientLeavesWithoutAWord(t *testing.T) {
	r := start(Options{Wait: time.Second})
	r.client.C.Abort()
	r.n.Run()
	r.n.Advance(time.Minute)
	if r.closed != 1 || len(r.seen) != 0 {
		t.Errorf("closed %d times, streams %v", r.closed, r.seen)
	}
	r = start(Options{Wait: time.Second}) // a FIN alone may be a client that only listens
	r.client.C.CloseWrite()
	r.n.Run()
	if r.server == nil || !r.server.HadEOF {
		t.Error("a half-closed connection was not carried on")
	}
}

// A client that must speak first, and does not, is not waited for longer than one of HTTP.
func TestSilentClientFirst(t *testing.T) {
	r := start(Options{ClientFirst: true})
	r.n.Advance(5*time.Minute - time.Second)
	if r.client.Over() || len(r.seen) > 0 {
		t.Fatalf("over %v, seen %v", r.client.Over(), r.seen)
	}
	r.n.Advance(2 * time.Second)
	if !r.client.Over() || r.closed != 1 || len(r.seen) > 0 {
		t.Errorf("over %v, closed %d, seen %v", r.client.Over(), r.closed, r.seen)
	}
}

// One that says half a word is passed on as it is.
func TestUndecidedClientFirst(t *testing.T) {
	r := start(Options{ClientFirst: true})
	r.client.Send("GE")
	r.n.Run()
	r.n.Advance(9 * time.Second)
	if len(r.seen) > 0 {
		t.Fatalf("seen %v", r.seen)
	}
	r.n.Advance(2 * time.Second)
	if len(r.seen) != 1 || r.server.Take() != "GE" || r.last() != mesh.Opaque {
		t.Errorf("seen %v, chosen %v", r.seen, r.chosen)
	}
	r.n.Advance(time.Hour)
	if r.client.Over() {
		t.Error("closed in the end")
	}
}

func TestDrainBeforeTheFirstRequest(t *testing.T) {
	for _, clientFirst := range []bool{false, true} {
		r := start(Options{ClientFirst: clientFirst, Wait: time.Second})
		r.f.Drain()
		r.client.Send(request)
		r.n.Run()
		if got := r.client.Take(); !strings.Contains(got, "connection: close\r\n") || !strings.HasSuffix(got, "answer") || !r.client.Over() {
			t.Errorf("client first %v: a request on its way got %q, ended %v", clientFirst, got, r.client.Over())
		}
		r = start(Options{ClientFirst: clientFirst, Wait: time.Second})
		r.f.Drain()
		r.n.Advance(h1.DrainRest)
		if !r.client.Over() || r.closed != 1 || r.server != nil {
			t.Errorf("client first %v: a silent connection does not drain", clientFirst)
		}
	}
}

// Where there is time, who has said nothing is not ended; the first request is the last.
func TestUsherBeforeTheFirstRequest(t *testing.T) {
	r := start(Options{ClientFirst: true})
	r.f.Usher()
	r.n.Advance(2 * h1.DrainRest)
	if r.client.Over() {
		t.Fatal("a silent connection ended")
	}
	r.client.Send(request)
	r.n.Run()
	if got := r.client.Take(); !strings.Contains(got, "connection: close\r\n") || !strings.HasSuffix(got, "answer") || !r.client.Over() {
		t.Errorf("got %q, ended %v", got, r.client.Over())
	}
	r = start(Options{ClientFirst: true})
	r.f.Usher()
	r.f.Drain()
	r.n.Advance(h1.DrainRest)
	if !r.client.Over() {
		t.Error("a silent connection that was ushered does not drain")
	}
}

// A stream that was opened for a client that says nothing is nothing to wait for: it ends like an idle connection, unless
// either side says something in time.
func TestDrainWithAStreamOpenedAhead(t *testing.T) {
	ahead := func() *rig {
		r := start(Options{})
		r.n.Advance(0)
		r.n.Advance(0)
		if r.server == nil || !r.f.Undecided() {
			t.Fatal("no stream was opened ahead")
		}
		r.f.Drain()
		return r
	}
	r := ahead()
	r.n.Advance(h1.DrainRest - 1)
	if r.client.Over() || r.server.Over() {
		t.Error("the client had no time")
	}
	r.n.Advance(1)
	if !r.client.HadEOF || !r.server.HadEOF || r.client.IsReset() || r.server.IsReset() || r.closed != 1 {
		t.Errorf("a silent connection: client ended %v, server %v, closed %d", r.client.Over(), r.server.Over(), r.closed)
	}
	r = ahead()
	r.client.Send(request)
	r.n.Run()
	if got := r.client.Take(); !strings.Contains(got, "connection: close\r\n") || !strings.HasSuffix(got, "answer") || !r.client.Over() {
		t.Errorf("a request on its way got %q, ended %v", got, r.client.Over())
	}
	for name, say := range map[string]func(r *rig){
		"client":         func(r *rig) { r.client.Send("\x16\x03\x01") },
		"half a word":    func(r *rig) { r.client.Send("PO") },
		"server":         func(r *rig) { r.server.Send("220 ready\r\n") },
		"server, HTTP/2": func(r *rig) { r.server.Send("\x00\x00\x00\x04\x00\x00\x00\x00\x00") },
	} {
		r = ahead()
		r.n.Advance(h1.DrainRest - 1)
		say(r)
		r.n.Run()
		r.n.Advance(2 * h1.DrainRest)
		if r.client.Over() || r.server.Over() || r.client.Take()+r.server.Take() == "" {
			t.Errorf("%s: a connection on which somebody has spoken was ended", name)
		}
	}
}
