package exchange

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

// replayMax bounds the request body that is kept so that a request can be sent again.
const replayMax = 8 << 10

// Stream is one request and its response. The Handler sees it from Request to Done.
type Stream struct {
	// Req is the request head, Res the final response head once it is there.
	Req, Res *Head
	// Trailers are the response's trailer fields, names lower-case.
	Trailers []hpack.HeaderField
	// Conn is ServerOptions.Conn; Ctx is the Handler's own value for this stream.
	Conn, Ctx any
	// Start, FirstByte and End are times of the loop's Clock, in nanoseconds: the request's head, the response's head
	// (the first byte, for an opaque connection) and the end. Zero: did not happen.
	Start, FirstByte, End int64
	// ReqEnd is when all of the request had been given to the upstream codec, by the same clock.
	ReqEnd int64
	// Note is the TimeField for the response's head, which must be going to another proxy; empty: none.
	Note string
	// ReqBytes and ResBytes count body bytes received from the client and from the server.
	ReqBytes, ResBytes uint64
	// Reason is why the mesh failed the stream; empty when it did not.
	Reason mesh.Reason
	// Tunnel is set once both sides exchange plain bytes.
	Tunnel bool
	// Unprocessed says, in Handler.Lost, that the server has certainly done nothing with the request (GOAWAY,
	// REFUSED_STREAM, or nothing was written): any method may be sent again. Otherwise only an idempotent one.
	Unprocessed bool

	handler Handler
	clock   flow.Clock
	pool    *Pool
	down    Downstream
	half    [2]Half
	ports   [2]Port
	q       [2]queue // toward that side
	got     [2]bool  // everything from that side has arrived
	sent    [2]bool  // everything toward that side has been written

	headSent, interim, local, dead bool

	web       *webBody // a gRPC-Web response
	clientEnd bool     // the client has finished sending on its connection

	reqTrail    []hpack.HeaderField
	trailBuf    []hpack.HeaderField
	replay      []byte // request body already forwarded, while it may have to be sent again
	replayLost  bool
	precredited int // queued request bytes for which the source has been credited
	paced       uint64
	slow        uint8 // see Slow
	gen         uint32
	next        *Stream
}

// Forward carries the stream on over u. extra fields are appended to the request's; they must not be changed later.
func (s *Stream) Forward(u Upstream, extra []hpack.HeaderField) {
	s.Unprocessed = false
	u.Send(s, extra)
}

// Respond answers locally with a small body. A content-length is added. After a response head has been forwarded
// it resets the stream instead. The stream may have ended on return.
func (s *Stream) Respond(status int, fields []hpack.HeaderField, body []byte) {
	if s.dead {
		return
	}
	if s.headSent {
		s.finish(Ending{Reason: s.Reason})
		return
	}
	s.dropUpstream(Ending{Clean: s.got[Up], Reason: s.Reason})
	if s.Req.Major == 0 { // opaque: there is no way to answer
		s.finish(Ending{Reason: s.Reason})
		return
	}
	s.q[Up].reset(s.pool)
	s.q[Down].reset(s.pool)
	s.local, s.headSent, s.Tunnel = true, true, false
	h := &Head{Status: status, Major: 1, Minor: 1, Fields: fields}
	if len(body) > 0 {
		h.Fields = withLength(fields, len(body))
	}
	s.Res = h
	s.got[Up] = true
	end := len(body) == 0 || s.Req.Method == "HEAD"
	s.down.WriteHead(s, h, end)
	if end {
		s.ended(Down)
		return
	}
	s.q[Down].push(s.pool, body)
	s.Pump(Down)
}

// Reset ends the stream at once in both directions.
func (s *Stream) Reset(reason mesh.Reason) {
	if s.dead {
		return
	}
	s.Reason = reason
	s.finish(Ending{Reason: reason})
}

// Queued is how much memory holds what waits in the stream, in both directions, in bytes.
func (s *Stream) Queued() int { return s.q[Down].memory() + s.q[Up].memory() }

// dropping reports whether bytes toward a side are of no use any more.
func (s *Stream) dropping(to Side) bool {
	return s.dead || s.sent[to] || to == Up && s.half[Up] == nil && (s.local || s.got[Up])
}

// forwarded accounts for p, which the codec of side to has taken.
func (s *Stream) forwarded(to Side, p []byte) {
	n := len(p)
	if n == 0 {
		return
	}
	if to == Up {
		if s.Res == nil && !s.replayLost {
			if len(s.replay)+n > replayMax {
				s.dropReplay()
			} else {
				s.replay = append(s.replay, p...)
			}
		}
		k := min(n, s.precredited)
		s.precredited -= k
		n -= k
	}
	s.credit(1-to, n)
}

func (s *Stream) credit(from Side, n int) {
	s.ports[from].Held -= int32(n)
	if src := s.half[from]; src != nil && n > 0 {
		src.Credit(s, n)
	}
}

// dropReplay gives up the possibility of sending the request again.
func (s *Stream) dropReplay() {
	s.replayLost = true
	s.replay = s.replay[:0]
}

// rewind puts the forwarded part of the request back in front of the queue.
func (s *Stream) rewind() {
	s.sent[Up] = false
	if len(s.replay) == 0 {
		return
	}
	s.precredited += len(s.replay)
	s.q[Up].unshift(s.pool, s.replay)
	s.replay = s.replay[:0]
}

func (s *Stream) trailers(to Side) []hpack.HeaderField {
	if to == Up {
		return s.reqTrail
	}
	if len(s.Trailers) == 0 {
		return nil
	}
	return s.Trailers
}

// ended notes that everything toward a side has been written, and ends the stream when that was the last of it.
func (s *Stream) ended(to Side) {
	s.sent[to] = true
	if to == Up {
		s.ReqEnd = s.clock.Now()
	}
	switch {
	case to == Down && (!s.Tunnel || s.sent[Up]), to == Up && s.Tunnel && s.sent[Down]:
		s.finish(Ending{Clean: true})
	case to == Up:
		s.passEnd()
	}
}

func (s *Stream) dropUpstream(e Ending) {
	u := s.half[Up]
	if u == nil {
		return
	}
	s.half[Up] = nil
	u.Detach(s, e)
	s.dropUpstreamQueue()
}

// dropUpstreamQueue throws away what was to go to an upstream that is gone.
func (s *Stream) dropUpstreamQueue() {
	if !s.sent[Up] {
		n := s.q[Up].len()
		s.q[Up].reset(s.pool)
		s.credit(Down, max(0, n-s.precredited))
		s.precredited = 0
	}
}

func (s *Stream) finish(e Ending) {
	if s.dead {
		return
	}
	s.dead = true
	s.End = s.clock.Now()
	if u := s.half[Up]; u != nil {
		s.half[Up] = nil
		u.Detach(s, e)
	}
	if d := s.half[Down]; d != nil {
		s.half[Down] = nil
		d.Detach(s, e)
	}
	s.handler.Done(s)
	s.pool.put(s)
}
