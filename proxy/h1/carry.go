package h1

import (
	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

// Write implements exchange.Half.
func (cl *Client) Write(s *exchange.Stream, p []byte, end bool) int {
	if cl.out.mode == modeHold {
		cl.holdEnd = cl.holdEnd || end && len(p) == 0
		return 0
	}
	n := cl.out.write(p, end)
	if end && n == len(p) {
		s.Port(exchange.Up).SentEnd = true
	}
	return n
}

// WriteTrailers implements exchange.Half.
func (cl *Client) WriteTrailers(s *exchange.Stream, f []hpack.HeaderField) {
	cl.out.trailers(cl.o.Pool, f)
	s.Port(exchange.Up).SentEnd = true
}

// ClientEnd implements exchange.EndHearer: the connection ends with this exchange.
func (cl *Client) ClientEnd(*exchange.Stream) {
	cl.closing = true
	cl.c.CloseWrite()
}

// Credit implements exchange.Half.
func (cl *Client) Credit(*exchange.Stream, int) {
	if cl.gate.Paused {
		cl.update()
	}
}

// Detach implements exchange.Half. The connection is used again if both messages were complete.
func (cl *Client) Detach(s *exchange.Stream, e exchange.Ending) {
	p := s.Port(exchange.Up)
	cl.s = nil
	cl.served++
	switch {
	case p.GotEnd && p.SentEnd && !cl.closing:
		if cl.busy {
			cl.freed = true
		} else {
			cl.update()
			cl.changed()
		}
	case p.GotEnd && (e.Clean || cl.state != stTunnel):
		cl.shut()
	case !cl.over:
		cl.over, cl.state = true, stOver
		cl.c.Abort()
	}
}
