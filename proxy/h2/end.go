package h2

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
)

// ClientEnd implements exchange.EndHearer: HTTP/2 has no word for it but the links' own.
func (cl *Client) ClientEnd(s *exchange.Stream) {
	if cl.internal && !cl.over {
		cl.c.Write(appendFrame(cl.buf[:0], 0, frClientEnd, 0, s.Port(exchange.Up).ID))
	}
}

// onClientEnd passes on what another proxy says of its client. It may come too late for the stream.
func (c *conn) onClientEnd(id uint32) error {
	if s := c.streams.get(id); s != nil && c.internal && c.side == exchange.Down && s.Port(exchange.Down).GotEnd {
		s.ClientEnd()
	}
	return c.control(mesh.AbuseFrames)
}
