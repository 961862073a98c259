package backend

import (
	"strconv"

	"conduit.io/conduit/tests/load/h2"

	"golang.org/x/net/http2"
)

// answerKey is what the header fields of an answer depend on.
type answerKey struct {
	status, length int
	grpc           bool
}

// maxKeys bounds the header blocks that are remembered.
const maxKeys = 64

// headers sends the head of an answer; length -1 is none.
func (h *h2Conn) headers(id uint32, p *plan, status, length int, end bool) {
	kind := "text/plain"
	if p.grpc {
		kind, length = "application/grpc", -1
	}
	k := answerKey{status, length, p.grpc}
	n := h.keys[k]
	if n == 0 && len(h.keys) < maxKeys {
		n = len(h.keys) + 1
		h.keys[k] = n
	}
	fields := append(h.fields[:0], h2.Field{Name: ":status", Value: strconv.Itoa(status)}, h2.Field{Name: "content-type", Value: kind})
	if length >= 0 {
		fields = append(fields, h2.Field{Name: "content-length", Value: strconv.Itoa(length)})
	}
	h.fields = fields
	h.ses.SendHeaders(id, n, fields, end)
}

// answer sends the whole answer to a request that has come with got bytes of body, of which body was kept.
func (h *h2Conn) answer(id uint32, p *plan, got int, body []byte) {
	h.srv.requests++
	switch p.action {
	case answer:
		h.content(id, p, p.content)
	case count:
		h.whole(id, p, 200, strconv.AppendInt(nil, int64(got), 10))
	case echo:
		h.whole(id, p, 200, body)
	case stats:
		h.whole(id, p, 200, h.srv.stats())
	case reset:
		h.ses.SendReset(id, http2.ErrCodeInternal)
	default:
		h.whole(id, p, 404, []byte("no such path\n"))
	}
}

func (h *h2Conn) content(id uint32, p *plan, c h2.Content) {
	length := c.Len()
	if c.Chunks > 1 {
		length = -1
	}
	h.headers(id, p, 200, length, p.bare)
	if p.bare {
		return
	}
	h.ses.SendContent(id, c, h.end(id, p))
}

// end is what ends a gRPC answer; nil for others.
func (h *h2Conn) end(id uint32, p *plan) func() {
	if !p.grpc {
		return nil
	}
	return func() { h.trailers(id) }
}

func (h *h2Conn) trailers(id uint32) {
	h.serial++
	h.ses.SendHeaders(id, 0, append(h.fields[:0], h2.Field{Name: "grpc-status", Value: "0"},
		h2.Field{Name: "x-trailer", Value: strconv.FormatUint(h.serial*0x9e3779b97f4a7c15, 36)}), true)
}

func (h *h2Conn) whole(id uint32, p *plan, status int, b []byte) {
	length := len(b)
	if p.action == count || p.action == stats {
		length = -1 // differs each time: not worth remembering
	}
	h.headers(id, p, status, length, p.bare)
	if p.bare {
		return
	}
	if p.grpc && h.ses.SendBytes(id, b) {
		h.trailers(id)
		return
	}
	q := h.ses.SendQueue(id, h.end(id, p))
	h.ses.Append(q, b)
	h.ses.Finish(q)
}
