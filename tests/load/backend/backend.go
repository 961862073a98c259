// Package backend is the server behind the proxies that are measured: HTTP/1.1, HTTP/2 with prior knowledge, and gRPC
// on one port, on one thread. What it answers is for the path to say (see Usage).
package backend

import (
	"fmt"
	"net"

	"conduit.io/conduit/tests/load/engine"
)

// Usage lists the paths.
const Usage = `  /                        128 bytes
  /bytes/<n>               n bytes
  /stream/<chunks>/<n>     chunks of n bytes, each in a frame (or chunk, or gRPC message) of its own
  /upload                  how many bytes the request's body had
  /echo                    the request's body; over HTTP/2 while it still arrives
  /slow/<ms>               128 bytes, that much later
  /reset                   RST_STREAM, or a connection reset over HTTP/1.1
  /stats                   JSON: connections, open, requests
Any path with content-type application/grpc is a gRPC method: those above answer with messages, all others with the
request's. A gRPC answer ends in the trailers grpc-status: 0 and x-trailer, which differs each time.
`

// maxStreams is how many streams a connection may have.
const maxStreams = 1000

// Server serves on a loop.
type Server struct {
	loop        *engine.Loop
	connections uint64
	open        int
	requests    uint64
	draining    bool
	conns       map[*detector]struct{}
}

// Serve answers on what ln listens on, which the caller closes, while l runs.
func Serve(l *engine.Loop, ln *net.TCPListener) (*Server, error) {
	s := &Server{loop: l, conns: map[*detector]struct{}{}}
	return s, l.Listen(ln, s.accept)
}

func (s *Server) accept(c *engine.Conn) engine.Handler {
	s.connections++
	s.open++
	d := &detector{srv: s, conn: c}
	s.conns[d] = struct{}{}
	return d
}

// Drain has clients go elsewhere, and fails none of their requests: over HTTP/1.1 the next answer is a connection's last, over
// HTTP/2 there is a GOAWAY, and no more. It runs on the loop. What is connected later is drained, too.
func (s *Server) Drain() {
	s.draining = true
	for d := range s.conns {
		if h, ok := d.h.(*h2Conn); ok {
			h.ses.SendGoAway()
		}
	}
}

// Connections is how many there have been. It is asked on the loop.
func (s *Server) Connections() uint64 { return s.connections }

// stats is what /stats answers.
func (s *Server) stats() []byte {
	return fmt.Appendf(nil, `{"connections":%d,"open":%d,"requests":%d}`+"\n", s.connections, s.open, s.requests)
}

// detector is a connection of which the protocol is not known yet, and then the protocol's handler.
type detector struct {
	srv  *Server
	conn *engine.Conn
	h    engine.Handler
}

func (d *detector) Connected() {}

func (d *detector) Data(b []byte) int {
	if d.h == nil {
		if len(b) < 4 {
			return 0
		}
		if string(b[:4]) == "PRI " {
			h := newH2(d.srv, d.conn)
			if d.h = h; d.srv.draining {
				h.ses.SendGoAway()
			}
		} else {
			d.h = &h1Conn{srv: d.srv, conn: d.conn}
		}
	}
	n := d.h.Data(b)
	d.ended()
	return n
}

func (d *detector) EOF() {
	if d.h == nil {
		d.conn.Close()
	} else {
		d.h.EOF()
	}
	d.ended()
}

func (d *detector) Drained() {
	d.h.Drained()
	d.ended()
}

func (d *detector) Closed(err error) {
	if d.h != nil {
		d.h.Closed(err)
	}
	d.ended()
}

// ended counts a connection out once.
func (d *detector) ended() {
	if !d.conn.Open() && d.srv != nil {
		d.srv.open--
		delete(d.srv.conns, d)
		d.srv = nil
	}
}
