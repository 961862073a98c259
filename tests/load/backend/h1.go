package backend

import (
	"fmt"
	"strconv"

	"conduit.io/conduit/tests/load/engine"
	"conduit.io/conduit/tests/load/h1"
	"conduit.io/conduit/tests/load/h2"
)

// h1Conn serves one request after the other.
type h1Conn struct {
	srv  *Server
	conn *engine.Conn
	head h1.Head
	plan *plan
	body h1.Body
	got  int
	kept []byte // of the request's body, for an echo
	// The answer that is being sent, from off on.
	content h2.Content
	off     int
	chunked bool
	ends    bool // the answer has said that it is the last one
	writing bool // an answer is being waited for or sent; what the client sends meanwhile is not read
	eof     bool
}

// maxKept bounds what is kept of a request for its echo.
const maxKept = 64 << 20

func (c *h1Conn) Connected() {}

func (c *h1Conn) Data(b []byte) int {
	took := 0
	for c.conn.Open() && !c.writing && (c.plan != nil || !c.eof) {
		if c.plan == nil {
			n, err := c.head.Request(b[took:])
			if err != nil {
				c.refuse()
				return took
			}
			if n == 0 {
				return took
			}
			took += n
			c.plan = route(c.head.Method, c.head.Path, c.head.Kind)
			c.body = h1.NewBody(&c.head, false, false)
			c.got, c.kept = 0, nil
		}
		data, n, done, err := c.body.Take(b[took:])
		took += n
		c.got += len(data)
		if c.plan.action == echo {
			c.kept = append(c.kept, data...)
		}
		switch {
		case err != nil || len(c.kept) > maxKept:
			c.refuse()
		case done:
			c.answer()
		case n == 0:
			return took
		}
	}
	return took
}

func (c *h1Conn) refuse() {
	c.conn.Write([]byte("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"))
	c.conn.CloseFlushed()
}

func (c *h1Conn) answer() {
	c.srv.requests++
	p := c.plan
	if p.delay > 0 {
		c.writing = true
		c.conn.Pause()
		t := c.srv.loop.NewTimer(func() {
			c.writing = false
			c.send()
			if !c.writing {
				c.conn.Resume()
			}
		})
		c.srv.loop.Set(t, engine.Now()+int64(p.delay))
		return
	}
	c.send()
}

func (c *h1Conn) send() {
	p := c.plan
	switch p.action {
	case count:
		c.whole(200, strconv.AppendInt(nil, int64(c.got), 10))
	case echo:
		c.whole(200, c.kept)
	case stats:
		c.whole(200, c.srv.stats())
	case unknown:
		c.whole(404, []byte("no such path\n"))
	case reset:
		c.conn.Reset()
	default:
		c.start(p.content)
	}
}

// last reports whether the connection ends with the answer that is begun, and keeps to it.
func (c *h1Conn) last() bool {
	c.ends = c.ends || c.head.Close || c.srv.draining
	return c.ends
}

func (c *h1Conn) head1(status, length int) {
	out := append(c.conn.Output(), "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, " OK\r\ncontent-type: text/plain\r\n"...)
	if length < 0 {
		out = append(out, "transfer-encoding: chunked\r\n"...)
	} else {
		out = append(out, "content-length: "...)
		out = strconv.AppendInt(out, int64(length), 10)
		out = append(out, "\r\n"...)
	}
	if c.last() {
		out = append(out, "connection: close\r\n"...)
	}
	c.conn.Commit(append(out, "\r\n"...))
}

func (c *h1Conn) whole(status int, b []byte) {
	c.head1(status, len(b))
	if !c.plan.bare {
		c.conn.Write(b)
	}
	c.done()
}

func (c *h1Conn) start(content h2.Content) {
	c.chunked = content.Chunks > 1
	if c.chunked {
		c.head1(200, -1)
	} else {
		c.head1(200, content.Len())
	}
	if c.plan.bare {
		c.done()
		return
	}
	c.content, c.off, c.writing = content, 0, true
	c.pump()
}

const (
	maxBacklog = 256 << 10
	maxPiece   = 64 << 10
)

// pump writes as much of the answer as the connection takes.
func (c *h1Conn) pump() {
	total := c.content.Len()
	for c.off < total {
		if c.conn.Backlog() >= maxBacklog {
			c.conn.Pause()
			c.conn.NotifyDrained()
			return
		}
		period := total / c.content.Chunks
		n := min(maxPiece, period-c.off%period)
		out := c.conn.Output()
		if c.chunked {
			out = fmt.Appendf(out, "%x\r\n", n)
		}
		out = c.content.Append(out, c.off, n)
		if c.chunked {
			out = append(out, "\r\n"...)
		}
		c.off += n
		c.conn.Commit(out)
	}
	if c.chunked {
		c.conn.Write([]byte("0\r\n\r\n"))
	}
	c.writing = false
	c.done()
}

func (c *h1Conn) done() {
	c.plan = nil
	if c.ends {
		c.eof = true // nothing is read after this
	}
	if c.eof {
		c.conn.CloseFlushed()
	}
}

func (c *h1Conn) Drained() {
	if c.writing {
		c.pump()
		if !c.writing {
			c.conn.Resume()
		}
	}
}

// EOF: the client has said all that it will; it may still want its answer.
func (c *h1Conn) EOF() {
	c.eof = true
	if !c.writing {
		c.conn.CloseFlushed()
	}
}

func (c *h1Conn) Closed(error) {}
