// Package opaque carries TCP connections whose protocol is not known, or not HTTP, as tunnel streams.
package opaque

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

// Verdict is what a sniff function makes of a client's first bytes.
type Verdict uint8

// The verdicts.
const (
	Stay  Verdict = iota // the connection is opaque: forward
	More                 // undecided: call again with more bytes
	Leave                // the caller has taken the connection, with the bytes, for another codec
)

// Server is the downstream codec of one opaque connection; it implements flow.Receiver.
type Server struct {
	c     flow.Conn
	s     *exchange.Stream
	o     exchange.ServerOptions
	sniff func(p []byte) Verdict
	first []byte // client bytes that sniff has not decided about
	gate  exchange.Gate
	gone  bool // the connection has ended before its stream
	left  bool
	held  flow.Timer // the server's first bytes wait for the client's
	taken uint64     // bytes written
}

// NewServer makes itself the receiver of c and starts one Stream with the request req, whose Method is CONNECT and
// whose Major is 0.
//
// While no byte from the upstream has been delivered to the client, the client's first bytes, all that have come so
// far, go through sniff, if not nil. On Leave the connection belongs to the sniff function's owner, who gives it to
// another receiver with those bytes: the stream ends quietly, with Reason "" and without OnClose, and an upstream
// connection that has exchanged nothing is closed with FIN.
func NewServer(c flow.Conn, h exchange.Handler, o exchange.ServerOptions, req *exchange.Head, sniff func(p []byte) Verdict) *Server {
	if o.Pool == nil {
		o.Pool = exchange.NewPool()
	}
	sv := &Server{c: c, o: o, sniff: sniff}
	c.SetReceiver(sv)
	sv.s = o.Pool.NewStream(sv, h, &sv.o)
	sv.s.Open(req, false)
	return sv
}

// Data implements flow.Receiver.
func (sv *Server) Data(p []byte) {
	if sv.s == nil || len(p) == 0 {
		return
	}
	if sv.sniff == nil {
		sv.deliver(p, false)
		return
	}
	if sv.first != nil {
		sv.first = append(sv.first, p...)
		p = sv.first
	}
	switch sv.sniff(p) {
	case More:
		if sv.first == nil {
			sv.first = append([]byte(nil), p...)
		}
		if len(sv.first) > flow.HighWater {
			sv.Settle()
		}
	case Leave:
		sv.sniff, sv.first, sv.left = nil, nil, true
		sv.unhold()
		if s := sv.s; s != nil {
			sv.s = nil
			s.Leave()
		}
	default:
		sv.sniff, sv.first = nil, nil
		sv.deliver(p, false)
		sv.release()
	}
}

// settle ends the sniffing: the connection is opaque.
func (sv *Server) settle(end bool) {
	p := sv.first
	sv.sniff, sv.first = nil, nil
	if len(p) > 0 || end {
		sv.deliver(p, end)
	}
}

func (sv *Server) deliver(p []byte, end bool) {
	s := sv.s
	if s == nil {
		return
	}
	port := s.Port(exchange.Down)
	if port.GotEnd {
		return
	}
	port.GotEnd = end
	s.Data(exchange.Down, p, end)
	if sv.s != nil {
		sv.gate.Update(sv.c, int(sv.s.Port(exchange.Down).Held))
	}
}

// Beyond implements flow.Shortcut.
func (sv *Server) Beyond() flow.Conn {
	if sv.s == nil || sv.sniff != nil {
		return nil
	}
	return sv.s.Beyond(exchange.Down)
}

// Passed implements flow.Shortcut.
func (sv *Server) Passed(n int) { sv.s.Passed(exchange.Down, n) }

// Raw implements exchange.Raw.
func (sv *Server) Raw() flow.Conn {
	if sv.sniff != nil {
		return nil
	}
	return sv.c
}

// EOF implements flow.Receiver.
func (sv *Server) EOF() {
	if sv.s != nil {
		sv.settle(true)
		sv.release()
	}
}

// Drained implements flow.Receiver.
func (sv *Server) Drained() {
	if sv.s != nil {
		sv.s.Pump(exchange.Down)
	}
}

// Closed implements flow.Receiver.
func (sv *Server) Closed(err error) {
	if sv.left {
		return
	}
	if s := sv.s; s != nil {
		if err == nil && s.Port(exchange.Down).Complete() {
			sv.gone = true // Detach tells the owner, once the upstream has taken what is left
			return
		}
		sv.s = nil
		s.Abort(exchange.Down, mesh.ReasonDownstreamReset, 0, false)
	}
	if sv.o.OnClose != nil {
		sv.o.OnClose(err)
	}
}

// Drain has nothing to announce: an opaque connection ends when its ends end it.
func (sv *Server) Drain() {}

// Quit ends a connection on which nobody has said a word, and of which it is not known what the client speaks: nobody has
// failed.
func (sv *Server) Quit() {
	if !sv.Sniffing() || sv.first != nil || sv.held != nil {
		return
	}
	s := sv.s
	sv.s, sv.sniff = nil, nil
	s.Leave()
	sv.c.Close()
}

// Held implements exchange.Burden.
func (sv *Server) Held() int {
	n := len(sv.first) + sv.c.Backlog()
	if sv.s != nil {
		n += sv.s.Queued()
	}
	return n
}

// Taken implements exchange.Burden.
func (sv *Server) Taken() uint64 { return sv.taken - min(sv.taken, uint64(sv.c.Backlog())) }

// Shed implements exchange.Burden.
func (sv *Server) Shed() {
	if sv.o.OnViolation != nil {
		sv.o.OnViolation(exchange.Violation{Reason: mesh.ReasonOverload, Abuse: mesh.AbuseUnread, Detail: "too much waits to be taken"})
	}
	if s := sv.s; s != nil {
		sv.s = nil
		s.Abort(exchange.Down, mesh.ReasonOverload, 0, false)
	}
	sv.c.Abort()
}

// WriteHead implements exchange.Downstream: there is no head on an opaque connection.
func (sv *Server) WriteHead(s *exchange.Stream, _ *exchange.Head, end bool) {
	if end {
		sv.Write(s, nil, true)
	}
}

// Write implements exchange.Half. The first byte from the upstream ends the sniffing; what the client has sent
// meanwhile goes to the upstream.
func (sv *Server) Write(s *exchange.Stream, p []byte, end bool) int {
	if sv.sniff != nil && len(p) > 0 {
		if sv.hold(p) {
			return 0
		}
		sv.settle(false)
	}
	n := exchange.WriteBounded(sv.c, p)
	sv.taken += uint64(n)
	if end && n == len(p) {
		s.Port(exchange.Down).SentEnd = true
		sv.c.CloseWrite()
	}
	return n
}

// WriteTrailers implements exchange.Half: the trailers have no place, the end has.
func (sv *Server) WriteTrailers(s *exchange.Stream, _ []hpack.HeaderField) { sv.Write(s, nil, true) }

// Credit implements exchange.Half.
func (sv *Server) Credit(s *exchange.Stream, _ int) {
	if sv.gate.Paused {
		sv.gate.Update(sv.c, int(s.Port(exchange.Down).Held))
	}
}

// Detach implements exchange.Half.
func (sv *Server) Detach(s *exchange.Stream, _ exchange.Ending) {
	sv.s = nil
	sv.unhold()
	switch {
	case sv.gone:
		if sv.o.OnClose != nil {
			sv.o.Clock.After(0, func() { sv.o.OnClose(nil) }) // after the stream's Done
		}
	case s.Port(exchange.Down).Complete():
		sv.c.Close()
	default:
		sv.c.Abort()
	}
}
