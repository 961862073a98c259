package h2

import (
	"strconv"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

// drainDelay is how long a client has to learn that the connection is going away before new streams are refused.
const drainDelay = time.Second

// Server is the downstream codec of one HTTP/2 connection; it implements flow.Receiver.
type Server struct {
	conn
	h     exchange.Handler
	o     exchange.ServerOptions
	final bool   // the second GOAWAY is sent
	gone  func() // tells the owner of the end, when the last stream has ended too
}

// NewServer makes itself the receiver of c, of which nothing has been consumed: the client's preface comes first.
// Bytes that were read before are handed on with Data.
func NewServer(c flow.Conn, h exchange.Handler, o exchange.ServerOptions) *Server {
	sv := &Server{h: h, o: o}
	sv.init(c, o.Pool, o.Clock, exchange.Down, o.Internal, sv)
	sv.o.Pool = sv.pool
	sv.connects = o.Internal || o.Extended
	sv.pre = len(Preface)
	c.SetReceiver(sv)
	sv.greet()
	return sv
}

// Closed implements flow.Receiver.
func (sv *Server) Closed(err error) {
	sv.over = true
	sv.abortAll()
	sv.free()
	sv.gone = func() {
		if sv.o.OnClose != nil {
			sv.o.OnClose(err)
		}
	}
	if sv.streams.len() == 0 {
		sv.gone()
		sv.gone = nil
	}
}

// Drain announces that the connection goes away: first that it will, so that requests in flight are served, then
// which stream is the last (RFC 9113, 6.8). It closes when its streams have ended.
func (sv *Server) Drain() {
	if sv.draining || sv.over {
		return
	}
	sv.draining = true
	sv.writeGoAway(maxWindow, codeNo)
	sv.c.Write(append(appendFrame(sv.buf[:0], 8, frPing, 0, 0), "drained?"...))
	if sv.watch != nil {
		sv.watch.Stop()
	}
	sv.greeting = false
	sv.watch = sv.clock.After(drainDelay, sv.lastCall)
}

// Quit is Drain for a client that may begin nothing more: the streams that are on their way are refused, which is to say
// that they may be sent again (RFC 9113, 8.7).
func (sv *Server) Quit() {
	sv.Drain()
	sv.lastCall()
}

// lastCall sends the second GOAWAY.
func (sv *Server) lastCall() {
	if sv.over || sv.final {
		return
	}
	sv.final = true
	sv.writeGoAway(sv.hp.lastID, codeNo)
	sv.idle()
}

// acked is called on the answer to a PING; only Drain sends one.
func (sv *Server) acked() {
	if sv.draining {
		sv.lastCall()
	}
}

// settled implements role.
func (sv *Server) settled() {}

func (sv *Server) idle() {
	if sv.gone != nil && sv.streams.len() == 0 {
		sv.clock.After(0, sv.gone) // after the stream's Done
		sv.gone = nil
	}
	if sv.final && sv.streams.len() == 0 {
		sv.shut()
	}
}

// goAway: a client that goes away may still have streams.
func (sv *Server) goAway(uint32, uint32) { sv.Drain() }

func (sv *Server) violated(e *connError) {
	sv.violation(e.why(mesh.ReasonBadRequest), e.abuse, e.text)
}

func (sv *Server) violation(reason mesh.Reason, abuse mesh.Abuse, text string) {
	if sv.o.OnViolation != nil {
		sv.o.OnViolation(exchange.Violation{Reason: reason, Abuse: abuse, Detail: text})
	}
}

func (sv *Server) reset(s *exchange.Stream, code uint32) {
	s.Abort(exchange.Down, mesh.ReasonDownstreamReset, code, false)
	sv.idle()
}

// broke implements role. To the server it is a cancellation.
func (sv *Server) broke(s *exchange.Stream, reason mesh.Reason) {
	s.Abort(exchange.Down, reason, codeNo, false)
	sv.idle()
}

// unknown handles a frame on a stream that is not open (RFC 9113, 5.1).
func (sv *Server) unknown(id uint32, typ byte) error {
	if id&1 == 0 || id > sv.hp.lastID {
		return fatal(codeProtocol, "frame on an idle stream")
	}
	if typ == frReset { // then nothing more of it is in flight
		sv.forget(id)
	}
	if typ != frData || sv.wasReset(id) || sv.nreset > len(sv.resets) {
		return nil
	}
	sv.rst(id, codeStreamClosed)
	return sv.countReset()
}

// headers implements role: a new request, or trailers.
func (sv *Server) headers(id uint32, end bool, b *block) error {
	if s := sv.streams.get(id); s != nil {
		return sv.trailers(s, end, b)
	}
	if id&1 == 0 {
		return fatal(codeProtocol, "a client opened a stream with an even number")
	}
	if id <= sv.hp.lastID {
		if sv.wasReset(id) || sv.nreset > len(sv.resets) {
			return nil
		}
		if sv.nreset == 0 {
			return fatal(codeStreamClosed, "HEADERS on a closed stream")
		}
		sv.rst(id, codeStreamClosed)
		return sv.countReset()
	}
	sv.hp.lastID = id
	if sv.final || sv.streams.len() >= advertised {
		sv.rst(id, codeRefused)
		return sv.countReset()
	}
	if b.big {
		return sv.tooLarge(id, end)
	}
	req, left, err := sv.request(b)
	if err != nil || end && left > 0 {
		sv.violation(mesh.ReasonBadRequest, mesh.AbuseNone, "malformed request")
		sv.rst(id, codeProtocol)
		return sv.countReset()
	}
	sv.open(id, end, req, left)
	return nil
}

func (sv *Server) open(id uint32, end bool, req *exchange.Head, left int64) {
	sv.awake()
	s := sv.pool.NewStream(sv, sv.h, &sv.o)
	*s.Port(exchange.Down) = exchange.Port{ID: id, Window: sv.initWin, Left: left, GotEnd: end}
	sv.streams.put(id, s)
	if left > 0 {
		sv.look()
	}
	s.Open(req, end)
}

// slow implements role.
func (sv *Server) slow(s *exchange.Stream) {
	sv.violation(mesh.ReasonTimeout, mesh.AbuseSlowBody, slowBody)
	s.Fail(408, mesh.ReasonTimeout, slowBody)
}

// tooLarge answers a request whose head is over the limits; the connection is none the worse.
func (sv *Server) tooLarge(id uint32, end bool) error {
	sv.violation(mesh.ReasonTooLarge, mesh.AbuseLargeHead, "the request head is too large")
	sv.hp.begin(sv.pool)
	sv.hp.field(hpack.HeaderField{Name: ":status", Value: "431"})
	sv.hp.field(hpack.HeaderField{Name: mesh.ReasonHeader, Value: string(mesh.ReasonTooLarge)})
	sv.writeBlock(id, true, sv.hp.finish(sv.pool))
	if !end {
		sv.rst(id, codeNo)
	}
	return sv.countReset()
}

// WriteHead implements exchange.Downstream.
func (sv *Server) WriteHead(s *exchange.Stream, h *exchange.Head, end bool) {
	if sv.over {
		return
	}
	port := s.Port(exchange.Down)
	port.SentEnd = end
	plain := s.Req.Protocol == "" && !s.Tunnel
	if plain {
		if b := sv.hp.known(h); b != nil {
			if s.Note != "" {
				sv.hp.begin(sv.pool)
				sv.hp.out = append(sv.hp.out, b...)
				sv.hp.field(hpack.HeaderField{Name: exchange.TimeField, Value: s.Note})
				b = sv.hp.finish(sv.pool)
			}
			sv.writeBlock(port.ID, end, b)
			return
		}
	}
	status := h.Status
	if s.Tunnel && status == 101 {
		status = 200 // RFC 8441, 5
	}
	sv.hp.begin(sv.pool)
	sv.hp.field(hpack.HeaderField{Name: ":status", Value: strconv.Itoa(status)})
	for i := range h.Fields {
		name := h.Fields[i].Name
		if exchange.HopByHop(name) || name == "te" || !sv.internal && exchange.LinkOnly(name) || (s.Tunnel || status == 204) && name == "content-length" {
			continue
		}
		sv.hp.field(h.Fields[i])
	}
	sv.choke()
	if !s.Tunnel && s.Req.Protocol != "" && status/100 == 2 {
		sv.hp.field(hpack.HeaderField{Name: declined, Value: "1"})
	}
	if s.Note != "" {
		sv.hp.field(hpack.HeaderField{Name: exchange.TimeField, Value: s.Note})
	}
	b := sv.hp.finish(sv.pool)
	sv.writeBlock(port.ID, end, b)
	if plain && s.Note == "" {
		sv.hp.remember(h, b)
	}
}

// Detach implements exchange.Half.
func (sv *Server) Detach(s *exchange.Stream, e exchange.Ending) {
	p := s.Port(exchange.Down)
	sv.remove(s)
	if !p.SentEnd || !p.GotEnd {
		sv.rst(p.ID, serverCode(p.SentEnd, e))
	}
	sv.idle()
}

// serverCode is the error code for a stream that a server gives up.
func serverCode(sentEnd bool, e exchange.Ending) uint32 {
	switch {
	case sentEnd && e.Clean:
		return codeNo // an early response (RFC 9113, 8.1)
	case e.Code != codeNo:
		return e.Code
	case e.Reason == mesh.ReasonBadRequest:
		return codeProtocol
	case e.Reason == mesh.ReasonTimeout:
		return codeCancel
	}
	return codeInternal
}
