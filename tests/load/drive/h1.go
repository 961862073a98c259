package drive

import (
	"conduit.io/conduit/tests/load/h1"
)

const (
	maxBacklog = 256 << 10
	maxPiece   = 64 << 10
)

type h1Link struct {
	*link
	q    *request // the one that is being made
	off  int      // of its body
	head h1.Head
	body h1.Body
	in   bool // within the answer's body
}

func (h *h1Link) start(q *request) {
	h.live[0] = q
	h.q, h.off, h.in = q, 0, false
	h.conn.Commit(h.r.shape.h1(h.conn.Output()))
	h.upload()
}

// upload writes as much of the body as the connection takes.
func (h *h1Link) upload() {
	c := h.r.shape.body
	for h.off < c.Len() {
		if h.conn.Backlog() >= maxBacklog {
			h.conn.NotifyDrained()
			return
		}
		n := min(maxPiece, c.Len()-h.off)
		h.conn.Commit(c.Append(h.conn.Output(), h.off, n))
		h.off += n
	}
}

func (h *h1Link) drained() {
	if h.q != nil {
		h.upload()
	}
}

func (h *h1Link) data(b []byte) int {
	took := 0
	for took < len(b) && h.conn.Open() {
		if h.q == nil {
			h.end(errProtocol)
			return took
		}
		n, err := h.take(b[took:])
		if err != nil {
			h.end(errProtocol)
			return took
		}
		if n == 0 {
			return took
		}
		took += n
	}
	return took
}

func (h *h1Link) take(b []byte) (int, error) {
	took := 0
	if !h.in {
		n, err := h.head.Response(b)
		if n == 0 || err != nil {
			return 0, err
		}
		took = n
		if h.head.Status < 200 {
			return n, nil
		}
		bodiless := h.r.cfg.Method == "HEAD" || h.head.Status == 204 || h.head.Status == 304
		h.in, h.body, h.q.status = true, h1.NewBody(&h.head, true, bodiless), h.head.Status
		h.q.reason = h.head.Reason
	}
	for {
		data, n, done, err := h.body.Take(b[took:])
		took += n
		h.q.got += len(data)
		if done {
			h.finish()
		}
		if done || err != nil || n == 0 {
			return took, err
		}
	}
}

func (h *h1Link) finish() {
	q := h.q
	h.q = nil
	if h.head.Close || h.off < h.r.shape.body.Len() || h.body.UntilEOF() {
		h.draining = true
		h.r.replace(h.link)
	}
	h.r.complete(q)
}

func (h *h1Link) eof() {
	if h.q != nil && h.in && h.body.UntilEOF() {
		h.finish()
	}
}

func (h *h1Link) cancel(*request) {
	h.q, h.draining = nil, true
	h.conn.Reset()
	h.r.replace(h.link)
}
