package opaque

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

// Client is the upstream codec of an opaque connection. It carries exactly one stream.
type Client struct {
	c      flow.Conn
	s      *exchange.Stream
	o      exchange.ClientOptions
	gate   exchange.Gate
	used   bool // a stream was sent
	over   bool // the connection is closed or closing
	moved  bool // a byte went either way
	served uint64
}

// NewClient makes itself the receiver of c. Bytes from the server wait until a stream is sent.
func NewClient(c flow.Conn, o exchange.ClientOptions) *Client {
	cl := &Client{c: c, o: o}
	c.SetReceiver(cl)
	c.Pause()
	return cl
}

// Send implements exchange.Upstream. The response, status 200 with Major 0, is there at once.
func (cl *Client) Send(s *exchange.Stream, _ []hpack.HeaderField) {
	if cl.used || cl.over {
		s.Abort(exchange.Up, mesh.ReasonUpstreamReset, 0, true)
		return
	}
	cl.used, cl.s = true, s
	r := s.Ref()
	s.Attach(cl, false)
	if !r.Live() {
		return
	}
	s.ResponseHead(&exchange.Head{Status: 200}, false, true)
	if cl.s != nil {
		cl.c.Resume()
	}
}

// Room implements exchange.Upstream.
func (cl *Client) Room() int {
	if cl.used || cl.over {
		return 0
	}
	return 1
}

// Active implements exchange.Upstream.
func (cl *Client) Active() int {
	if cl.s == nil {
		return 0
	}
	return 1
}

// Served implements exchange.Upstream.
func (cl *Client) Served() uint64 { return cl.served }

// Drain implements exchange.Upstream.
func (cl *Client) Drain() {
	cl.used = true
	if cl.s == nil && !cl.over {
		cl.over = true
		cl.c.Close()
	}
}

// Close implements exchange.Upstream.
func (cl *Client) Close() {
	if s := cl.s; s != nil {
		cl.s = nil
		cl.over = true
		cl.c.Abort()
		s.Abort(exchange.Up, mesh.ReasonUpstreamReset, 0, false)
		return
	}
	cl.Drain()
}

// Data implements flow.Receiver.
func (cl *Client) Data(p []byte) {
	if cl.s == nil {
		return
	}
	cl.moved = true
	cl.deliver(p, false)
}

func (cl *Client) deliver(p []byte, end bool) {
	port := cl.s.Port(exchange.Up)
	if port.GotEnd {
		return
	}
	port.GotEnd = end
	cl.s.Data(exchange.Up, p, end)
	if cl.s != nil {
		cl.gate.Update(cl.c, int(cl.s.Port(exchange.Up).Held))
	}
}

// Beyond implements flow.Shortcut.
func (cl *Client) Beyond() flow.Conn {
	if cl.s == nil {
		return nil
	}
	return cl.s.Beyond(exchange.Up)
}

// Passed implements flow.Shortcut.
func (cl *Client) Passed(n int) {
	cl.moved = true
	cl.s.Passed(exchange.Up, n)
}

// Raw implements exchange.Raw.
func (cl *Client) Raw() flow.Conn {
	if !cl.moved {
		return nil
	}
	return cl.c
}

// EOF implements flow.Receiver.
func (cl *Client) EOF() {
	if cl.s != nil {
		cl.deliver(nil, true)
	} else if !cl.over {
		cl.over = true
		cl.c.Close()
	}
}

// Drained implements flow.Receiver.
func (cl *Client) Drained() {
	if cl.s != nil {
		cl.s.Pump(exchange.Up)
	}
}

// Closed implements flow.Receiver.
func (cl *Client) Closed(err error) {
	cl.over = true
	if s := cl.s; s != nil {
		cl.s = nil
		s.Abort(exchange.Up, exchange.LostReason(err), 0, false)
	}
	if cl.o.OnChange != nil {
		cl.o.OnChange(cl, true, err)
	}
}

// write notes whether anything was sent.
func (cl *Client) write(p []byte) int {
	n := exchange.WriteBounded(cl.c, p)
	cl.moved = cl.moved || n > 0
	return n
}

// Write implements exchange.Half.
func (cl *Client) Write(s *exchange.Stream, p []byte, end bool) int {
	n := cl.write(p)
	if end && n == len(p) {
		s.Port(exchange.Up).SentEnd = true
		cl.c.CloseWrite()
	}
	return n
}

// WriteTrailers implements exchange.Half: the trailers have no place, the end has.
func (cl *Client) WriteTrailers(s *exchange.Stream, _ []hpack.HeaderField) { cl.Write(s, nil, true) }

// Credit implements exchange.Half.
func (cl *Client) Credit(s *exchange.Stream, _ int) {
	if cl.gate.Paused {
		cl.gate.Update(cl.c, int(s.Port(exchange.Up).Held))
	}
}

// Detach implements exchange.Half. A connection that has exchanged nothing ends with FIN: nobody failed.
func (cl *Client) Detach(s *exchange.Stream, _ exchange.Ending) {
	cl.s = nil
	cl.over = true
	cl.served++
	if s.Port(exchange.Up).Complete() || !cl.moved {
		cl.c.Close()
	} else {
		cl.c.Abort()
	}
}
