package exchange

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

// Side names one of the two ends of a Stream.
type Side uint8

// The sides.
const (
	Down Side = 0 // the codec that received the request
	Up   Side = 1 // the codec that carries it on
)

// Half is what a codec offers the Stream. Its methods write to the codec's connection and never call the Stream back.
type Half interface {
	// Write takes as much of p as flow control and the connection's backlog allow, and returns how much. With end,
	// and when all of p was taken, the end of the body follows it. A codec that took less calls Stream.Pump later.
	Write(s *Stream, p []byte, end bool) int
	// WriteTrailers ends the body with trailer fields; all bytes have been written before.
	WriteTrailers(s *Stream, f []hpack.HeaderField)
	// Credit says that n more of the bytes that this codec delivered have been taken by the other side.
	Credit(s *Stream, n int)
	// Detach ends the codec's part in s, with a reset if its exchange is not complete. It must not use s afterwards.
	Detach(s *Stream, e Ending)
}

// EndHearer is an upstream Half that can tell its server of the end of the client's connection, as apart from the end of
// the request: HTTP/1.1, and a link to a proxy that then can.
type EndHearer interface {
	// ClientEnd says that the client, whose request has been sent completely, will send nothing more on its connection.
	ClientEnd(s *Stream)
}

// Downstream is the Half of a server codec.
type Downstream interface {
	Half
	// WriteHead sends a response head: an interim one (1xx, end false) or the final one.
	WriteHead(s *Stream, h *Head, end bool)
}

// Raw is a Half whose connection carries the bytes of its one stream and nothing else.
type Raw interface {
	Half
	// Raw is that connection, nil when something has to be done before the next byte is written.
	Raw() flow.Conn
}

// Ending is how a stream came to its end.
type Ending struct {
	Clean  bool        // the exchange is complete as far as the other side is concerned
	Quiet  bool        // nobody failed: the connection is wanted for something else
	Reason mesh.Reason // why, when neither
	Code   uint32      // the HTTP/2 error code that the other side sent, if it did (RFC 9113, 7)
}

// Port is a codec's own state of one stream, kept in the Stream so that a stream costs no further allocation.
type Port struct {
	ID       uint32 // HTTP/2 stream identifier
	Window   int32  // what may be sent; negative after a SETTINGS change
	Unacked  int32  // forwarded bytes not yet credited to the peer
	Held     int32  // bytes delivered to the Stream and not yet forwarded
	Parked   int32  // of them, credited to the connection all the same
	Left     int64  // announced body bytes still to come; -1: not announced
	GotEnd   bool   // the peer has finished sending
	SentEnd  bool   // we have finished sending
	Interims uint8  // interim responses so far
	Extended bool   // the request was sent as an extended CONNECT (RFC 8441)
	Blocked  bool   // in the connection's list of blocked streams
}

// Complete reports whether both directions have ended in order. The end of the connection then means nothing to the stream:
// what came over it may still be on its way to the other side.
func (p *Port) Complete() bool { return p.GotEnd && p.SentEnd }

// Ref refers to a stream that may have been reused since.
type Ref struct {
	S   *Stream
	Gen uint32
}

// Live reports whether the stream is still the one that was meant.
func (r Ref) Live() bool { return r.S.gen == r.Gen }

// Ref is a reference to s that becomes stale when s ends.
func (s *Stream) Ref() Ref { return Ref{S: s, Gen: s.gen} }

// NewStream takes a stream from the pool for a downstream codec, which then sets its Port and calls Open.
func (p *Pool) NewStream(d Downstream, h Handler, o *ServerOptions) *Stream {
	s := p.get()
	s.handler, s.clock, s.Conn = h, o.Clock, o.Conn
	s.down, s.half[Down] = d, d
	s.Start = o.Clock.Now()
	return s
}

// Open hands the request to the Handler; end says that it has no body. The stream may have ended on return.
func (s *Stream) Open(req *Head, end bool) {
	s.Req = req
	s.got[Down] = end
	s.handler.Request(s)
}

// RequestEnded reports whether the request's head can carry the end of the request: nothing follows it.
func (s *Stream) RequestEnded() bool {
	return s.got[Down] && s.q[Up].len() == 0 && s.reqTrail == nil
}

// Attach makes u the upstream half after it has sent the request's head, with the end of the request if ended, and
// sends on what of the body has arrived.
func (s *Stream) Attach(u Half, ended bool) {
	s.half[Up] = u
	if ended {
		s.sent[Up], s.ReqEnd = true, s.clock.Now()
		s.passEnd()
		return
	}
	s.Pump(Up)
}

// ClientEnd notes that the client has finished sending on its connection, behind a request that is complete. It may have
// gone, or may be waiting for the response: the server hears of it, and decides as if the client were its own.
func (s *Stream) ClientEnd() {
	s.clientEnd = true
	s.passEnd()
}

func (s *Stream) passEnd() {
	if !s.clientEnd || !s.sent[Up] || s.Tunnel {
		return
	}
	if u, ok := s.half[Up].(EndHearer); ok {
		u.ClientEnd(s)
	}
}

// Data carries body bytes that arrived at from; they are valid during the call only. end: the body ends with them.
func (s *Stream) Data(from Side, p []byte, end bool) {
	to := 1 - from
	s.counted(from, len(p))
	if s.web != nil && from == Up {
		s.web.feed(p)
	}
	s.ports[from].Held += int32(len(p))
	s.got[from] = end
	if s.dropping(to) {
		s.credit(from, len(p))
		return
	}
	sink := s.half[to]
	if sink != nil && s.q[to].len() == 0 {
		n := sink.Write(s, p, end)
		s.forwarded(to, p[:n])
		if n == len(p) {
			if end {
				s.ended(to)
			}
			return
		}
		p = p[n:]
	}
	s.q[to].push(s.pool, p)
}

// Beyond is the connection on the other side to which bytes from a side may go without being seen: those of flow.Shortcut.
func (s *Stream) Beyond(from Side) flow.Conn {
	to := 1 - from
	if s.dropping(to) || s.got[from] || s.q[to].len() > 0 || to == Down && !s.headSent || to == Up && !s.replayLost {
		return nil
	}
	if r, ok := s.half[to].(Raw); ok {
		return r.Raw()
	}
	return nil
}

// Passed accounts for bytes that went there.
func (s *Stream) Passed(from Side, n int) { s.counted(from, n) }

// counted notes that bytes have come from a side.
func (s *Stream) counted(from Side, n int) {
	if from == Down {
		s.ReqBytes += uint64(n)
		return
	}
	s.ResBytes += uint64(n)
	if s.FirstByte == 0 {
		s.FirstByte = s.clock.Now()
	}
}

// TrailersFrom ends the body that comes from a side with trailer fields, which are copied.
func (s *Stream) TrailersFrom(from Side, f []hpack.HeaderField) {
	s.got[from] = true
	if from == Up {
		s.Trailers = append(s.trailBuf[:0], f...)
	} else {
		s.reqTrail = append(make([]hpack.HeaderField, 0, len(f)), f...)
	}
	if !s.dropping(1 - from) {
		s.Pump(1 - from)
	}
}

// Pump sends on what is queued toward a side; its codec calls it when it can take more.
func (s *Stream) Pump(to Side) {
	sink := s.half[to]
	if sink == nil || s.sent[to] || to == Down && !s.headSent {
		return
	}
	from := 1 - to
	trail := s.trailers(to)
	q := &s.q[to]
	for {
		b := q.front()
		end := s.got[from] && trail == nil && len(b) == q.len()
		if len(b) == 0 && !end {
			break
		}
		n := sink.Write(s, b, end)
		s.forwarded(to, b[:n])
		q.pop(s.pool, n)
		if n < len(b) {
			return
		}
		if end {
			break
		}
	}
	if !s.got[from] {
		return
	}
	if trail != nil {
		sink.WriteTrailers(s, trail)
	}
	s.ended(to)
}

// Interim carries a 1xx response other than 101.
func (s *Stream) Interim(h *Head) {
	if s.headSent {
		return
	}
	s.interim = true
	s.dropReplay()
	s.down.WriteHead(s, h, false)
}

// ResponseHead carries the final response head from the upstream codec; end: there is no body. tunnel: both sides go on
// as a byte stream (CONNECT, Upgrade).
func (s *Stream) ResponseHead(h *Head, end, tunnel bool) {
	s.Res = h
	s.Tunnel = tunnel
	if h.Major != 0 {
		s.FirstByte = s.clock.Now()
	}
	reason := mesh.Reason(h.Get(mesh.ReasonHeader)) // only another proxy's gets as far as here
	refused := !tunnel && (s.Req.Major == 0 || reason == mesh.ReasonConnect || reason == mesh.ReasonConnectTimeout)
	if !refused {
		s.dropReplay()
	}
	r := s.Ref()
	s.handler.Response(s)
	if !r.Live() || s.local {
		return
	}
	if refused {
		s.refused(h, reason)
		return
	}
	if !tunnel && s.Req.Protocol != "" && s.Req.Method == "CONNECT" && h.Status/100 == 2 { // it would say that there is a tunnel
		s.Fail(502, mesh.ReasonNoUpgrade, "the server answered without changing to the protocol that was asked for")
		return
	}
	s.headSent = true
	if s.Req.Method == "POST" && !tunnel {
		s.web = newWebBody(s.Req, h)
	}
	s.down.WriteHead(s, h, end)
	if end {
		s.got[Up] = true
		s.ended(Down)
	}
}

// refused deals with another proxy's word that it could not reach its application: nothing was begun there, so that the
// Handler may send the stream elsewhere.
func (s *Stream) refused(h *Head, reason mesh.Reason) {
	if reason == "" {
		reason = mesh.ReasonUpstreamReset
	}
	if u := s.half[Up]; u != nil {
		s.half[Up] = nil
		u.Detach(s, Ending{Reason: reason})
	}
	s.Res = nil
	if !s.interim && !s.replayLost && s.down != nil {
		s.rewind()
		s.Unprocessed = true
		r := s.Ref()
		if s.handler.Lost(s, reason) || !r.Live() || s.local {
			return
		}
	}
	s.Res = h
	s.Fail(h.Status, reason, "the server's proxy could not reach it")
}

// Abort says that the half of from is gone: its connection broke or its peer reset the stream. An upstream half stays
// attached until the client has taken the whole response, so that its windows bound what is queued; if it goes after
// the end of the response, that is no failure. code is the HTTP/2
// error code, if one was received. unprocessed: the server said that it did nothing with the request.
func (s *Stream) Abort(from Side, reason mesh.Reason, code uint32, unprocessed bool) {
	if s.dead {
		return
	}
	s.half[from] = nil
	if from == Down {
		s.down = nil
		s.Reason = reason
		s.finish(Ending{Reason: reason, Code: code})
		return
	}
	if s.got[Up] && (!s.Tunnel || s.sent[Up]) { // it has done its part: what is queued goes to the client all the same
		s.dropUpstreamQueue()
		return
	}
	if s.Res == nil && !s.interim && !s.replayLost && s.down != nil {
		s.rewind()
		s.Unprocessed = unprocessed
		r := s.Ref()
		if s.handler.Lost(s, reason) || !r.Live() || s.local {
			return
		}
	}
	if s.Res == nil && (code == 0 || s.Req.Major != 2) {
		s.fail(lostStatus(reason), lostCode(reason), reason, lostDetail(reason))
		return
	}
	s.Reason = reason
	if code == 0 && s.breakOff(lostCode(reason), reason, "the server ended the exchange before it was complete") {
		return
	}
	s.finish(Ending{Reason: reason, Code: code})
}

// Leave ends a stream because its downstream connection is wanted for something else.
func (s *Stream) Leave() {
	s.half[Down], s.down = nil, nil
	s.finish(Ending{Quiet: true})
}

// Port is the state of the codec on side i.
func (s *Stream) Port(i Side) *Port { return &s.ports[i] }
