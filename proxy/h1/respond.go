package h1

import (
	"strconv"

	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

func itoa(n int) string { return strconv.Itoa(n) }

// WriteHead implements exchange.Downstream.
func (sv *Server) WriteHead(s *exchange.Stream, h *exchange.Head, end bool) {
	if h.Status < 200 && !s.Tunnel {
		if sv.minor > 0 { // HTTP/1.0 has no interim responses
			b := appendStatus(sv.o.Pool.Bytes[:0], h.Status)
			b = appendFields(b, h.Fields, sv.hidden)
			sv.o.Pool.Bytes = append(b, '\r', '\n')
			sv.c.Write(sv.o.Pool.Bytes)
		}
		return
	}
	if s.Tunnel {
		sv.acceptTunnel(s, h)
		return
	}
	if sv.state == stUpgrade { // refused: what follows is the next request, but not after CONNECT
		sv.state = stWait
		s.Port(exchange.Down).GotEnd = true
		sv.closing = sv.closing || s.Req.Method == "CONNECT"
	}
	b := appendStatus(sv.o.Pool.Bytes[:0], h.Status)
	empty := h.Status == 204 || h.Status == 304
	length := false
	b = appendFields(b, h.Fields, func(name string) bool {
		if name == "content-length" {
			length = true
			return h.Status == 204
		}
		return sv.hidden(name)
	})
	switch {
	case empty || s.Req.Method == "HEAD":
		sv.out.mode = modeNone
	case length:
		sv.out.mode = modeLength
	case end:
		b = append(b, "content-length: 0\r\n"...)
		sv.out.mode = modeLength
	case sv.minor > 0:
		b = append(b, "transfer-encoding: chunked\r\n"...)
		sv.out.mode = modeChunked
	default:
		sv.out.mode = modeClose
		sv.closing = true
	}
	// An answer to half a request: nobody knows whether the other half will come, or the next request.
	sv.closing = sv.closing || sv.drain || sv.last || !s.Port(exchange.Down).GotEnd
	switch {
	case sv.closing:
		b = append(b, "connection: close\r\n"...)
	case sv.minor == 0:
		b = append(b, "connection: keep-alive\r\n"...)
	}
	sv.o.Pool.Bytes = append(b, '\r', '\n')
	sv.c.Write(sv.o.Pool.Bytes)
	s.Port(exchange.Down).SentEnd = end
}

func (sv *Server) hidden(name string) bool {
	return exchange.HopByHop(name) || !sv.o.Internal && exchange.LinkOnly(name)
}

// acceptTunnel answers a CONNECT or an Upgrade. What the client has sent meanwhile follows.
func (sv *Server) acceptTunnel(s *exchange.Stream, h *exchange.Head) {
	status := 200
	if s.Req.Protocol != "" {
		status = 101
	}
	b := appendStatus(sv.o.Pool.Bytes[:0], status)
	b = appendFields(b, h.Fields, func(name string) bool { return name == "content-length" || sv.hidden(name) })
	if status == 101 {
		b = appendField(appendField(b, "connection", "upgrade"), "upgrade", s.Req.Protocol)
	}
	sv.o.Pool.Bytes = append(b, '\r', '\n')
	sv.c.Write(sv.o.Pool.Bytes)
	sv.out.mode = modeTunnel
	sv.state = stTunnel
	if len(sv.in) > 0 || sv.eof || sv.busy {
		sv.kick()
	}
}

// Write implements exchange.Half.
func (sv *Server) Write(s *exchange.Stream, p []byte, end bool) int {
	n := sv.out.write(p, end)
	if end && n == len(p) {
		s.Port(exchange.Down).SentEnd = true
	}
	return n
}

// WriteTrailers implements exchange.Half.
func (sv *Server) WriteTrailers(s *exchange.Stream, f []hpack.HeaderField) {
	sv.out.trailers(sv.o.Pool, f)
	s.Port(exchange.Down).SentEnd = true
}

// Credit implements exchange.Half.
func (sv *Server) Credit(*exchange.Stream, int) {
	if sv.gate.Paused {
		sv.update()
	}
}

// Detach implements exchange.Half: the exchange is over, and perhaps the connection with it.
func (sv *Server) Detach(s *exchange.Stream, e exchange.Ending) {
	p := s.Port(exchange.Down)
	mode := sv.out.mode
	sv.s, sv.out.mode = nil, modeNone
	sv.lastUse = sv.o.Clock.Now()
	switch {
	case sv.gone:
		if sv.o.OnClose != nil {
			sv.o.Clock.After(0, func() { sv.o.OnClose(nil) }) // after the stream's Done
		}
	case !p.SentEnd && (mode == modeChunked || mode == modeLength):
		sv.shut() // the framing shows that the response is cut short
	case !p.SentEnd:
		sv.state = stOver
		sv.c.Abort()
	case mode == modeTunnel:
		sv.shut()
	case !p.GotEnd:
		sv.linger()
	case sv.closing && len(sv.in) > 0:
		sv.linger()
	case sv.closing:
		sv.shut()
	default:
		sv.next()
	}
}

// next readies the connection for another request.
func (sv *Server) next() {
	sv.state = stHead
	switch {
	case sv.busy:
	case len(sv.in) > 0:
		sv.kick()
	case sv.eof:
		sv.shut()
	case sv.gate.Paused:
		sv.update()
	}
}

// kick resumes parsing from the loop: not here, because other codecs are at work further up the stack.
func (sv *Server) kick() {
	if !sv.kicked {
		sv.kicked = true
		sv.o.Clock.After(0, sv.resume)
	}
}

func (sv *Server) resume() {
	sv.kicked = false
	if len(sv.in) > 0 {
		sv.keep(nil, sv.run(sv.in))
	} else {
		sv.update()
	}
	if sv.eof && sv.state == stTunnel && sv.s != nil {
		sv.endTunnel()
	}
}
