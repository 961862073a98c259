package drive

import (
	"strconv"

	"conduit.io/conduit/tests/load/h2"

	"golang.org/x/net/http2"
)

// credit is how much is received on a stream before the target may send as much again.
const credit = 128 << 10

// lastID is the last stream that is begun on a connection.
const lastID = 1 << 30

type h2Link struct {
	*link
	ses  *h2.Session
	next uint32
}

func newH2(l *link) *h2Link {
	h := &h2Link{link: l, next: 1}
	h.ses = h2.NewSession(l.conn, h, false, 0)
	return h
}

func (h *h2Link) data(b []byte) int {
	n, err := h.ses.Take(b)
	if err != nil {
		h.end(errProtocol)
	}
	return n
}

func (h *h2Link) drained() { h.ses.Pump() }
func (h *h2Link) eof()     {}

func (h *h2Link) start(q *request) {
	q.id = h.next
	h.next += 2
	h.live[q.id] = q
	s := &h.r.shape
	key, fields := s.h2()
	bodiless := s.body.Size == 0 && !s.grpc
	h.ses.SendHeaders(q.id, key, fields, bodiless)
	if !bodiless {
		h.ses.SendContent(q.id, s.body, nil)
	}
	if h.next > lastID {
		h.draining = true
		h.r.replace(h.link)
	}
}

func (h *h2Link) cancel(q *request) { h.ses.SendReset(q.id, http2.ErrCodeCancel) }

// Settings implements h2.Peer.
func (h *h2Link) Settings(maxStreams uint32) {
	h.ready(int(maxStreams))
	h.r.offer(h.link)
	h.r.dispatch()
}

// Headers implements h2.Peer.
func (h *h2Link) Headers(id uint32, f *h2.Fields, end bool) {
	q := h.live[id]
	if q == nil {
		return
	}
	for i := range f.List {
		switch f.List[i].Name {
		case ":status":
			if f.List[i].Value == "200" {
				q.status = 200
			} else {
				q.status, _ = strconv.Atoi(f.List[i].Value)
			}
		case "conduit-reason":
			q.reason = f.List[i].Value
		case "grpc-status":
			q.grpc = f.List[i].Value
		case h.r.cfg.Trailer:
			q.trailer = true
		}
	}
	if end {
		h.finish(q)
	}
}

// Message implements h2.Peer.
func (h *h2Link) Message(id uint32, p []byte, end bool) {
	q := h.live[id]
	if q == nil {
		return
	}
	q.got += len(p)
	if end {
		h.finish(q)
		return
	}
	if q.owed += len(p); q.owed >= credit {
		h.ses.Credit(id, q.owed)
		q.owed = 0
	}
}

func (h *h2Link) finish(q *request) {
	h.ses.Abandon(q.id)
	h.r.complete(q)
}

// Reset implements h2.Peer.
func (h *h2Link) Reset(id uint32, code http2.ErrCode) {
	if q := h.live[id]; q != nil {
		h.r.fail(q, "reset-"+code.String())
	}
}

// GoAway implements h2.Peer.
func (h *h2Link) GoAway(last uint32, _ http2.ErrCode) {
	h.draining = true
	h.r.replace(h.link)
	for id, q := range h.live {
		if id > last {
			h.ses.Abandon(id)
			h.r.again(q)
		}
	}
	if len(h.live) == 0 {
		h.close()
	}
}
