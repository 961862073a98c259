// Package h1 speaks HTTP/1.1 (RFC 9112) on both sides of an exchange.
package h1

import (
	"bytes"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"
)

const (
	// HeadTimeout is how long a request head may take from its first byte.
	HeadTimeout = 10 * time.Second
	// IdleTimeout is how long a client's connection may stay without a request.
	IdleTimeout = 5 * time.Minute
	// DrainRest is how long a connection that drains waits for a request which is on its way.
	DrainRest = time.Second
	// lingerTimeout and lingerMax bound the reading of a request whose answer has been sent already, so that the
	// answer is not lost to a reset.
	lingerTimeout = 2 * time.Second
	lingerMax     = 1 << 20
	// turnHeads is how many requests are read in one turn, if all of them are answered at once.
	turnHeads = 64
	// memoMax bounds the head that is kept for comparison with the next one.
	memoMax = 1 << 10
)

type state uint8

const (
	stHead    state = iota // waiting for a head, or reading it
	stBody                 // reading a body of known length
	stChunk                // reading a chunked body
	stWait                 // the request is complete, its response is not
	stUpgrade              // CONNECT or Upgrade was asked for and not answered
	stTunnel               // bytes both ways
	stEOF                  // client side: a body that ends with the connection
	stLinger               // discarding
	stOver                 // closed, or closing
)

// Server is the downstream codec of one HTTP/1.1 connection; it implements flow.Receiver.
type Server struct {
	c    flow.Conn
	h    exchange.Handler
	o    exchange.ServerOptions
	s    *exchange.Stream
	out  body
	gate exchange.Gate

	in      []byte // bytes not yet consumed
	kept    int    // how many of them the pool knows of
	scan    int    // how many of them are known to hold no end of a head
	chunk   chunked
	left    int64
	state   state
	minor   int
	busy    bool // in feed
	eof     bool
	closing bool // the connection ends with the current exchange
	drain   bool
	last    bool // the next exchange says that it is the last
	gone    bool // the connection has ended before its stream
	kicked  bool // a call of resume is pending
	stalled bool // the client does not take its answers: nothing more is read until it does

	memo      []byte // the last head as received, and what it meant
	memoHead  *exchange.Head
	memoFrame framing

	headTimer, idleTimer, lingerTimer, paceTimer flow.Timer

	lastUse  int64
	lingered int
	heads    int // heads read in this turn
}

// NewServer makes itself the receiver of c. Bytes that were read before are handed on with Data.
func NewServer(c flow.Conn, h exchange.Handler, o exchange.ServerOptions) *Server {
	if o.Pool == nil {
		o.Pool = exchange.NewPool()
	}
	sv := &Server{c: c, h: h, o: o, out: body{c: c}}
	sv.lastUse = o.Clock.Now()
	sv.idleTimer = o.Clock.After(IdleTimeout, sv.idle)
	c.SetReceiver(sv)
	return sv
}

// shut closes the connection in order.
func (sv *Server) shut() {
	sv.state = stOver
	sv.c.Close()
}

// Data implements flow.Receiver.
func (sv *Server) Data(p []byte) {
	if sv.in == nil {
		sv.keep(p, sv.run(p))
		return
	}
	sv.in = append(sv.in, p...)
	sv.keep(nil, sv.run(sv.in))
}

func (sv *Server) run(p []byte) int {
	sv.busy, sv.heads = true, 0
	n := sv.feed(p)
	sv.busy = false
	return n
}

// keep stores what feed has not consumed of p, or, if p is nil, of sv.in.
func (sv *Server) keep(p []byte, n int) {
	switch {
	case p == nil && n > 0:
		m := copy(sv.in, sv.in[n:])
		sv.in = sv.in[:m]
	case p != nil && n < len(p):
		sv.in = sv.o.Pool.Hold(p[n:])
	}
	if sv.in != nil && (len(sv.in) == 0 || sv.state >= stLinger) {
		sv.o.Pool.Release(sv.in)
		sv.in = nil
	}
	sv.account()
	sv.timeHead()
	if sv.state == stBody || sv.state == stChunk {
		sv.look()
	}
	if sv.eof {
		sv.end()
	}
	sv.update()
}

// update pauses or resumes the connection by what is waiting.
func (sv *Server) update() {
	held := 0
	if sv.s != nil {
		held = int(sv.s.Port(exchange.Down).Held)
	}
	if sv.state == stWait || sv.state == stUpgrade || sv.kicked {
		held += len(sv.in)
	}
	if sv.stalled {
		held += flow.HighWater + 1
	}
	if sv.state != stOver {
		sv.gate.Update(sv.c, held)
	}
}

func (sv *Server) feed(p []byte) int {
	n := 0
	for n < len(p) {
		switch sv.state {
		case stHead:
			if sv.stalled = sv.c.Backlog() > flow.HighWater; sv.stalled {
				return n
			}
			if sv.heads++; sv.heads > turnHeads { // the others have their turn
				sv.kick()
				return n
			}
			k := sv.head(p[n:])
			if k == 0 {
				return n
			}
			n += k
		case stBody:
			k := int(min(int64(len(p)-n), sv.left))
			sv.left -= int64(k)
			sv.body(p[n:n+k], sv.left == 0)
			n += k
		case stChunk:
			k, ok := sv.chunks(p[n:])
			if !ok {
				return len(p)
			}
			n += k
		case stTunnel:
			sv.body(p[n:], false)
			return len(p)
		case stLinger:
			if sv.lingered += len(p) - n; sv.lingered > lingerMax {
				sv.shut()
			}
			return len(p)
		case stOver:
			return len(p)
		default:
			return n
		}
	}
	return n
}

// body passes on bytes of the request's body; the stream may end in it.
func (sv *Server) body(p []byte, end bool) {
	if end {
		sv.state = stWait
		sv.s.Port(exchange.Down).GotEnd = true
	}
	sv.s.Data(exchange.Down, p, end)
}

func (sv *Server) chunks(p []byte) (int, bool) {
	n, data, done, err := sv.chunk.gather(p)
	if len(data) > 0 {
		sv.s.Data(exchange.Down, data, false)
	}
	switch {
	case sv.state != stChunk: // the stream has ended in it
		return n, true
	case err != nil:
		sv.bad(err)
		return 0, false
	}
	if done {
		f, err := sv.chunk.fields(sv.o.Pool, sv.o.Internal)
		if err != nil {
			sv.bad(err)
			return 0, false
		}
		sv.state = stWait
		sv.s.Port(exchange.Down).GotEnd = true
		if len(f) > 0 {
			sv.s.TrailersFrom(exchange.Down, f)
		} else {
			sv.s.Data(exchange.Down, nil, true)
		}
	}
	return n, true
}

// head reads a request head from the start of b and opens its stream. It returns 0 if the head is not complete.
func (sv *Server) head(b []byte) int {
	if b[0] == '\r' { // empty lines before a request are skipped (RFC 9112, 2.2)
		switch {
		case len(b) == 1:
			return 0
		case b[1] == '\n':
			return 2
		}
	}
	n, err := scanHead(b, min(sv.scan, len(b)))
	if err != nil {
		sv.bad(err)
		return len(b)
	}
	if n == 0 {
		sv.scan = len(b)
		return 0
	}
	sv.scan = 0
	req, fr := sv.memoHead, sv.memoFrame
	if req == nil || !bytes.Equal(sv.memo, b[:n]) {
		if req, fr, err = parseRequest(sv.o.Pool, b[:n], sv.o.Internal); err != nil {
			sv.bad(err)
			return len(b)
		}
		sv.memoHead = nil
		if n <= memoMax {
			sv.memo, sv.memoHead, sv.memoFrame = append(sv.memo[:0], b[:n]...), req, fr
		}
	} else if req.ID == 0 {
		req = sv.o.Pool.Intern(req, sv.o.Internal)
		sv.memoHead = req
	}
	sv.open(req, fr)
	return n
}

func (sv *Server) open(req *exchange.Head, fr framing) {
	sv.lastUse = sv.o.Clock.Now()
	sv.minor = req.Minor
	sv.closing = fr.close || sv.drain || sv.last
	sv.s = sv.o.Pool.NewStream(sv, sv.h, &sv.o)
	end := false
	switch {
	case req.Method == "CONNECT" || req.Protocol != "":
		sv.state = stUpgrade
	case fr.chunked:
		sv.state = stChunk
		sv.chunk.reset()
	case fr.length > 0:
		sv.state, sv.left = stBody, fr.length
	default:
		sv.state, end = stWait, true
		sv.s.Port(exchange.Down).GotEnd = true
	}
	sv.s.Open(req, end)
}

// EOF implements flow.Receiver.
func (sv *Server) EOF() {
	sv.eof = true
	switch sv.state {
	case stLinger:
		sv.shut()
	case stHead, stWait:
		sv.end()
	case stBody, stChunk:
		s := sv.s
		sv.s, sv.state = nil, stOver
		s.Abort(exchange.Down, mesh.ReasonDownstreamReset, 0, false)
		sv.c.Abort()
	case stTunnel:
		sv.endTunnel()
	}
}

// end deals with a client that has sent everything, once nothing of it is left to read.
func (sv *Server) end() {
	switch {
	case sv.kicked: // there is more
	case sv.state == stHead && !sv.stalled:
		sv.shut()
	case sv.state == stWait && sv.s != nil && len(sv.in) == 0:
		sv.s.ClientEnd()
	}
}

func (sv *Server) endTunnel() {
	p := sv.s.Port(exchange.Down)
	if !p.GotEnd {
		p.GotEnd = true
		sv.s.Data(exchange.Down, nil, true)
	}
}

// Drained implements flow.Receiver.
func (sv *Server) Drained() {
	if sv.s != nil {
		sv.s.Pump(exchange.Down)
	}
	if sv.stalled {
		sv.stalled = false
		sv.kick()
	}
}

// Closed implements flow.Receiver.
func (sv *Server) Closed(err error) {
	sv.state = stOver
	for _, t := range []flow.Timer{sv.headTimer, sv.idleTimer, sv.lingerTimer, sv.paceTimer} {
		if t != nil {
			t.Stop()
		}
	}
	if sv.in != nil {
		sv.o.Pool.Release(sv.in)
		sv.in = nil
	}
	sv.account()
	if s := sv.s; s != nil {
		if err == nil && s.Port(exchange.Down).Complete() {
			sv.gone = true // a tunnel: Detach tells the owner, once the upstream has taken what is left
			return
		}
		sv.s = nil
		s.Abort(exchange.Down, mesh.ReasonDownstreamReset, 0, false)
	}
	if sv.o.OnClose != nil {
		sv.o.OnClose(err)
	}
}

// Drain ends the connection after the current exchange. If there is none, it waits DrainRest for one: the client cannot
// know yet, and what it has sent may not have been read. That request is the last.
func (sv *Server) Drain() {
	if sv.drain {
		return
	}
	sv.drain, sv.closing = true, true
	if sv.state == stHead && len(sv.in) == 0 {
		if sv.idleTimer != nil {
			sv.idleTimer.Stop()
		}
		sv.lastUse = sv.o.Clock.Now()
		sv.idleTimer = sv.o.Clock.After(DrainRest, sv.idle)
	}
}

// Usher has the next exchange of which the client can be told so be the last, whenever that is. Nothing ends before.
func (sv *Server) Usher() { sv.last = true }

// Quit is Drain for a client that may begin nothing more: between two requests the connection ends at once.
func (sv *Server) Quit() {
	sv.Drain()
	if sv.state == stHead && len(sv.in) == 0 {
		sv.shut()
	}
}
