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
}

// Serve answers on what ln listens on, which the caller closes, while l runs.
func Serve(l *engine.Loop, ln *net.TCPListener) (*Server, error) {
	s := &Server{loop: l}
	return s, l.Listen(ln, s.accept)
}

func (s *Server) accept(c *engine.Conn) engine.Handler {
	s.connections++
	s.open++
	return &detector{srv: s, conn: c}
}

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
			d.h = newH2(d.srv, d.conn)
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
		d.srv = nil
	}
}
