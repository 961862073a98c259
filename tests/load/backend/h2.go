package backend

import (
	"conduit.io/conduit/tests/load/engine"
	"conduit.io/conduit/tests/load/h2"

	"golang.org/x/net/http2"
)

// h2Conn serves the streams of an HTTP/2 connection.
type h2Conn struct {
	srv  *Server
	conn *engine.Conn
	ses  *h2.Session
	live map[uint32]*request // those that did not end with their head, or are answered later
	free *request

	keys   map[answerKey]int
	fields []h2.Field // scratch
	serial uint64
}

// request is a stream whose request is still coming, or whose answer is not due.
type request struct {
	plan  *plan
	got   int
	owed  int // received, not credited
	kept  []byte
	body  *h2.Body // of an echo
	timer *engine.Timer
	next  *request
}

// credit is how much is received on a stream before the client may send as much again.
const credit = 128 << 10

func newH2(srv *Server, c *engine.Conn) *h2Conn {
	h := &h2Conn{srv: srv, conn: c, live: map[uint32]*request{}, keys: map[answerKey]int{}}
	h.ses = h2.NewSession(c, h, true, maxStreams)
	return h
}

func (h *h2Conn) Connected() {}

func (h *h2Conn) Data(b []byte) int {
	n, err := h.ses.Take(b)
	if err != nil {
		h.drop()
		h.conn.CloseFlushed()
	}
	return n
}

func (h *h2Conn) EOF() {
	h.drop()
	h.conn.CloseFlushed()
}

func (h *h2Conn) Drained()     { h.ses.Pump() }
func (h *h2Conn) Closed(error) { h.drop() }

func (h *h2Conn) drop() {
	for _, r := range h.live {
		if r.timer != nil {
			h.srv.loop.Unset(r.timer)
		}
	}
	clear(h.live)
}

func (h *h2Conn) Settings(uint32)              {}
func (h *h2Conn) GoAway(uint32, http2.ErrCode) {}

func (h *h2Conn) Headers(id uint32, f *h2.Fields, end bool) {
	if r := h.live[id]; r != nil { // trailers
		if end {
			h.complete(id, r, nil)
		}
		return
	}
	p, ok := f.Ctx.(*plan)
	if !ok {
		p = route(f.Get(":method"), f.Get(":path"), f.Get("content-type"))
		f.Ctx = p
	}
	if end && p.delay == 0 {
		h.answer(id, p, 0, nil)
		return
	}
	r := h.free
	if r == nil {
		r = &request{}
	} else {
		h.free = r.next
	}
	*r = request{plan: p, kept: r.kept[:0]}
	h.live[id] = r
	switch {
	case end:
		h.complete(id, r, nil)
	case p.action == echo && !p.grpc:
		h.headers(id, p, 200, -1, false)
		r.body = h.ses.SendQueue(id, nil)
		r.body.Sent = func(n int) { h.credit(id, r, n) }
	default:
		h.ses.Expect(id)
	}
}

// Message takes what a client sends on a stream (h2.Peer).
func (h *h2Conn) Message(id uint32, p []byte, end bool) {
	r := h.live[id]
	if r == nil {
		return // answered before it had ended, or reset
	}
	r.got += len(p)
	switch {
	case r.body != nil:
		h.ses.Append(r.body, p) // credited when it has left
	case end && r.plan.delay == 0:
	case r.plan.action == echo:
		if r.kept = append(r.kept, p...); len(r.kept) > maxKept {
			h.ses.SendReset(id, http2.ErrCodeEnhanceYourCalm)
			h.forget(id, r)
			return
		}
		fallthrough
	default:
		if !end {
			h.credit(id, r, len(p))
		}
	}
	if end {
		h.complete(id, r, p)
	}
}

// Reset ends a stream.
func (h *h2Conn) Reset(id uint32, _ http2.ErrCode) {
	if r := h.live[id]; r != nil {
		if r.timer != nil {
			h.srv.loop.Unset(r.timer)
		}
		h.forget(id, r)
	}
}

func (h *h2Conn) credit(id uint32, r *request, n int) {
	if r.owed += n; r.owed >= credit {
		h.ses.Credit(id, r.owed)
		r.owed = 0
	}
}

// complete answers a request that has all come, now or when its time is there.
func (h *h2Conn) complete(id uint32, r *request, last []byte) {
	if d := r.plan.delay; d > 0 {
		h.ses.Expect(id)
		r.timer = h.srv.loop.NewTimer(func() {
			h.forget(id, r)
			h.answer(id, r.plan, r.got, nil)
			h.ses.Pump()
		})
		h.srv.loop.Set(r.timer, engine.Now()+int64(d))
		return
	}
	if r.body != nil {
		h.srv.requests++
		h.ses.Finish(r.body)
		h.forget(id, r)
		return
	}
	body := last
	if len(r.kept) > 0 {
		body = append(r.kept, last...)
	}
	h.answer(id, r.plan, r.got, body)
	h.forget(id, r)
}

func (h *h2Conn) forget(id uint32, r *request) {
	delete(h.live, id)
	if cap(r.kept) > 64<<10 || r.body != nil || r.timer != nil {
		return
	}
	r.next, h.free = h.free, r
}
