package opaque

import (
	"time"

	"conduit.io/conduit/proxy/exchange"
)

// holdFor bounds how long a server's first bytes wait for the client's.
const holdFor = time.Second

// Settle ends the sniffing, if it is going on: the connection is opaque, and what either side has sent so far is
// forwarded.
func (sv *Server) Settle() {
	if sv.Sniffing() {
		sv.settle(false)
		sv.release()
	}
}

// Sniffing reports whether it is still open what the client speaks.
func (sv *Server) Sniffing() bool { return sv.s != nil && sv.sniff != nil }

// hold reports whether p, the first bytes from the upstream, say nothing about the client: an HTTP/2 server may send
// its SETTINGS before it has read the client's preface, which is on its way (RFC 9113, 3.4).
func (sv *Server) hold(p []byte) bool {
	if !isSettings(p) || sv.o.Clock == nil {
		return false
	}
	if sv.held == nil {
		sv.held = sv.o.Clock.After(holdFor, sv.Settle)
	}
	return true
}

// isSettings recognises the head of a SETTINGS frame that opens a connection: a length that is a multiple of six and
// fits a frame, type 4, no flags, stream 0 (RFC 9113, 4.1 and 6.5).
func isSettings(p []byte) bool {
	if len(p) < 9 {
		return false
	}
	n := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
	return n%6 == 0 && n <= 16384 && p[3] == 4 && p[4] == 0 && p[5]|p[6]|p[7]|p[8] == 0
}

// release forwards what was held.
func (sv *Server) release() {
	if sv.held == nil {
		return
	}
	sv.unhold()
	if sv.s != nil {
		sv.s.Pump(exchange.Down)
	}
}

func (sv *Server) unhold() {
	if sv.held != nil {
		sv.held.Stop()
		sv.held = nil
	}
}
