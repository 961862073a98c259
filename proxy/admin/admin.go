// Package admin serves the proxy's own HTTP endpoints: /metrics, /healthz and /readyz.
package admin

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/h1"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/sock"

	"golang.org/x/net/http2/hpack"
)

// Source is what is served.
type Source interface {
	// Stats is the metrics as Prometheus text. It is called on a goroutine of its own.
	Stats() []byte
	// Ready reports whether the proxy takes traffic. It is called on the loop.
	Ready() bool
}

// maxConns bounds the connections: nobody but a scraper and a kubelet has business here.
const maxConns = 256

// Server is the admin server.
type Server struct {
	loop    *loop.Loop
	source  Source
	streams *exchange.Pool
	open    int
	addr    netip.AddrPort
}

// Start listens on a and serves on l.
func Start(l *loop.Loop, a netip.AddrPort, src Source) (*Server, error) {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	defer ln.Close()
	f, err := ln.File()
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	defer f.Close()
	s := &Server{loop: l, source: src, streams: exchange.NewPool(), addr: ln.Addr().(*net.TCPAddr).AddrPort()}
	if e := l.Do(func() { err = s.listen(f) }); e != nil {
		return nil, fmt.Errorf("admin: %w", e)
	}
	return s, err
}

func (s *Server) listen(f *os.File) error {
	ln, err := sock.Listen(s.loop, f, s.accept)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	ln.Privileged = true // to tell what is wrong when descriptors are short
	return nil
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.addr }

func (s *Server) accept(c *sock.Conn) {
	if s.open >= maxConns {
		c.SetReceiver(nobody{})
		c.Abort()
		return
	}
	s.open++
	h1.NewServer(c, s, exchange.ServerOptions{Clock: s.loop, Pool: s.streams, OnClose: func(error) { s.open-- }})
}

// Request implements exchange.Handler.
func (s *Server) Request(st *exchange.Stream) {
	if st.Req.Method != "GET" && st.Req.Method != "HEAD" {
		respond(st, 405, "text/plain; charset=utf-8", []byte("only GET and HEAD\n"), hpack.HeaderField{Name: "allow", Value: "GET, HEAD"})
		return
	}
	path, _, _ := strings.Cut(st.Req.Path, "?") // scrapers may be configured to send parameters
	switch path {
	case "/metrics":
		s.metrics(st)
	case "/healthz":
		reply(st, 200, "ok\n")
	case "/readyz":
		if s.source.Ready() {
			reply(st, 200, "ready\n")
		} else {
			reply(st, 503, "not ready\n")
		}
	default:
		reply(st, 404, "try /metrics, /healthz or /readyz\n")
	}
}

// metrics gathers off the loop, which has traffic to carry.
func (s *Server) metrics(st *exchange.Stream) {
	ref := st.Ref()
	go func() {
		body := s.source.Stats()
		s.loop.Post(func() {
			if ref.Live() {
				respond(ref.S, 200, "text/plain; version=0.0.4; charset=utf-8", body)
			}
		})
	}()
}

func reply(st *exchange.Stream, status int, text string) {
	respond(st, status, "text/plain; charset=utf-8", []byte(text))
}

func respond(st *exchange.Stream, status int, kind string, body []byte, more ...hpack.HeaderField) {
	st.Respond(status, append(more, hpack.HeaderField{Name: "content-type", Value: kind}), body)
}

// Response implements exchange.Handler.
func (*Server) Response(*exchange.Stream) {}

// Lost implements exchange.Handler.
func (*Server) Lost(*exchange.Stream, mesh.Reason) bool { return false }

// Done implements exchange.Handler.
func (*Server) Done(*exchange.Stream) {}

// nobody receives from a connection that is being refused.
type nobody struct{}

func (nobody) Data([]byte)  {}
func (nobody) EOF()         {}
func (nobody) Drained()     {}
func (nobody) Closed(error) {}
