package h1

import (
	"bytes"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

// maxInterim bounds the interim responses to one request.
const maxInterim = 32

// Client is the upstream codec of one HTTP/1.1 connection: one exchange at a time. It implements flow.Receiver and
// exchange.Upstream.
type Client struct {
	c    flow.Conn
	o    exchange.ClientOptions
	s    *exchange.Stream
	out  body
	gate exchange.Gate

	in      []byte
	scan    int
	chunk   chunked
	left    int64
	state   state // stHead: idle, or waiting for a response
	busy    bool
	closing bool // the connection ends with the current exchange
	over    bool
	holdEnd bool   // the client's end came before the tunnel was accepted
	freed   bool   // became idle inside Data
	key     string // see prove
	served  uint64

	memo      []byte
	memoHead  *exchange.Head
	memoFrame framing
}

// NewClient makes itself the receiver of c.
func NewClient(c flow.Conn, o exchange.ClientOptions) *Client {
	if o.Pool == nil {
		o.Pool = exchange.NewPool()
	}
	cl := &Client{c: c, o: o, out: body{c: c}}
	c.SetReceiver(cl)
	return cl
}

// Send implements exchange.Upstream.
func (cl *Client) Send(s *exchange.Stream, extra []hpack.HeaderField) {
	if cl.Room() == 0 {
		s.Abort(exchange.Up, mesh.ReasonUpstreamReset, 0, true)
		return
	}
	cl.s, cl.holdEnd, cl.key = s, false, ""
	ended := s.RequestEnded()
	b, mode := cl.appendRequest(cl.o.Pool.Bytes[:0], s.Req, extra, ended)
	cl.o.Pool.Bytes = b
	cl.out.mode = mode
	cl.c.Write(b)
	*s.Port(exchange.Up) = exchange.Port{Left: -1, SentEnd: ended && mode != modeHold}
	s.Attach(cl, ended && mode != modeHold)
}

// Room implements exchange.Upstream.
func (cl *Client) Room() int {
	if cl.s != nil || cl.over || cl.closing || cl.busy {
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
	cl.closing = true
	if cl.s == nil {
		cl.shut()
	}
}

// Close implements exchange.Upstream.
func (cl *Client) Close() {
	cl.closing = true
	if cl.s != nil {
		cl.fail(mesh.ReasonUpstreamReset)
		return
	}
	cl.shut()
}

func (cl *Client) shut() {
	if !cl.over {
		cl.over, cl.state = true, stOver
		cl.c.Close()
	}
}

// fail ends the connection under its stream.
func (cl *Client) fail(reason mesh.Reason) {
	s := cl.s
	cl.s, cl.state = nil, stOver
	if !cl.over {
		cl.over = true
		cl.c.Abort()
	}
	if s != nil {
		s.Abort(exchange.Up, reason, 0, false)
	}
}

// Data implements flow.Receiver.
func (cl *Client) Data(p []byte) {
	kept := cl.in != nil
	if kept {
		cl.in = append(cl.in, p...)
		p = cl.in
	}
	cl.busy = true
	n := cl.feed(p)
	cl.busy = false
	switch {
	case cl.over:
		n = len(p)
	case n < len(p) && cl.s == nil: // nobody asked for this
		n = len(p)
		cl.shut()
	case n < len(p) && cl.complete():
		n = len(p)
		cl.closing = true
	}
	switch {
	case n == len(p):
		if kept {
			cl.o.Pool.Release(cl.in)
			cl.in = nil
		}
	case kept:
		cl.in = cl.in[:copy(cl.in, cl.in[n:])]
	default:
		cl.in = cl.o.Pool.Hold(p[n:])
	}
	cl.update()
	if cl.freed {
		cl.freed = false
		cl.changed()
	}
}

func (cl *Client) update() {
	if cl.s != nil {
		cl.gate.Update(cl.c, int(cl.s.Port(exchange.Up).Held))
	} else if cl.gate.Paused && !cl.over {
		cl.gate.Update(cl.c, 0)
	}
}

func (cl *Client) changed() {
	if cl.o.OnChange != nil && !cl.over {
		cl.o.OnChange(cl, false, nil)
	}
}

func (cl *Client) feed(p []byte) int {
	n := 0
	for n < len(p) && cl.s != nil && !cl.complete() {
		switch cl.state {
		case stHead:
			k := cl.head(p[n:])
			if k == 0 {
				return n
			}
			n += k
		case stBody:
			k := int(min(int64(len(p)-n), cl.left))
			cl.left -= int64(k)
			cl.deliver(p[n:n+k], cl.left == 0)
			n += k
		case stChunk:
			n += cl.chunks(p[n:])
		default: // stTunnel, stEOF
			cl.deliver(p[n:], false)
			return len(p)
		}
	}
	return n
}

// complete reports whether the response has been received; its client may still be taking it.
func (cl *Client) complete() bool { return cl.s.Port(exchange.Up).GotEnd }

// deliver passes on bytes of the response's body; the stream may end in it.
func (cl *Client) deliver(p []byte, end bool) {
	s := cl.s
	if end {
		cl.ended(s)
	}
	s.Data(exchange.Up, p, end)
}

// ended notes the end of a response.
func (cl *Client) ended(s *exchange.Stream) {
	if cl.state != stTunnel {
		cl.state = stHead
	}
	s.Port(exchange.Up).GotEnd = true
}

func (cl *Client) chunks(p []byte) int {
	n, data, done, err := cl.chunk.gather(p)
	if len(data) > 0 {
		cl.s.Data(exchange.Up, data, false)
	}
	switch {
	case cl.s == nil: // the stream has ended in it
		return n
	case err != nil:
		cl.fail(mesh.ReasonUpstreamProto)
		return len(p)
	case !done:
		return n
	}
	f, err := cl.chunk.fields(cl.o.Pool, cl.o.Internal)
	if err != nil {
		cl.fail(mesh.ReasonUpstreamProto)
		return len(p)
	}
	if len(f) == 0 {
		cl.deliver(nil, true)
		return n
	}
	s := cl.s
	cl.ended(s)
	s.TrailersFrom(exchange.Up, f)
	return n
}

// head reads a response head from the start of b; 0: it is not complete.
func (cl *Client) head(b []byte) int {
	n, err := scanHead(b, min(cl.scan, len(b)))
	if err == nil && n == 0 {
		cl.scan = len(b)
		return 0
	}
	cl.scan = 0
	res, fr := cl.memoHead, cl.memoFrame
	if err == nil && (res == nil || !bytes.Equal(cl.memo, b[:n])) {
		res, fr, err = parseResponse(cl.o.Pool, b[:n], cl.o.Internal)
		cl.memoHead = nil
		if err == nil && n <= memoMax {
			cl.memo, cl.memoHead, cl.memoFrame = append(cl.memo[:0], b[:n]...), res, fr
		}
	} else if err == nil && res.ID == 0 {
		res = cl.o.Pool.Intern(res, cl.o.Internal)
		cl.memoHead = res
	}
	if err == nil {
		err = cl.response(res, fr)
	}
	if err != nil {
		cl.fail(mesh.ReasonUpstreamProto)
		return len(b)
	}
	return n
}

// response starts a response by its framing (RFC 9112, 6.3).
func (cl *Client) response(res *exchange.Head, fr framing) error {
	s := cl.s
	hold := cl.out.mode == modeHold
	upgrade := s.Req.Protocol != ""
	if res.Status < 200 && !(res.Status == 101 && upgrade && hold) {
		p := s.Port(exchange.Up)
		if p.Interims++; res.Status == 101 || p.Interims > maxInterim {
			return errStatusLine
		}
		s.Interim(res)
		return nil
	}
	if hold && res.Status == 101 && cl.key != "" {
		var ok bool
		if res, ok = cl.proven(res); !ok {
			return errNoProof
		}
	}
	if hold && (res.Status == 101 || !upgrade && res.Status/100 == 2) {
		cl.tunnel(s, res)
		return nil
	}
	if hold { // refused; after CONNECT nobody knows what the server makes of further bytes
		cl.out.mode = modeNone
		s.Port(exchange.Up).SentEnd = upgrade
	}
	cl.closing = cl.closing || fr.close
	if s.Req.Method == "HEAD" || res.Status == 204 || res.Status == 304 || !fr.chunked && fr.length == 0 {
		cl.ended(s)
		s.ResponseHead(res, true, false)
		return nil
	}
	switch {
	case fr.chunked:
		cl.state = stChunk
		cl.chunk.reset()
	case fr.length > 0:
		cl.state, cl.left = stBody, fr.length
	default:
		cl.state, cl.closing = stEOF, true
	}
	s.ResponseHead(res, false, false)
	return nil
}

// tunnel starts the exchange of bytes.
func (cl *Client) tunnel(s *exchange.Stream, res *exchange.Head) {
	cl.state, cl.out.mode, cl.closing = stTunnel, modeTunnel, true
	s.ResponseHead(res, false, true)
	if cl.s != s {
		return
	}
	s.Pump(exchange.Up)
	if cl.s == s && cl.holdEnd {
		s.Port(exchange.Up).SentEnd = true
		cl.c.CloseWrite()
	}
}

// EOF implements flow.Receiver.
func (cl *Client) EOF() {
	switch {
	case cl.s == nil:
		cl.shut()
	case cl.state == stTunnel || cl.state == stEOF:
		if !cl.s.Port(exchange.Up).GotEnd {
			cl.deliver(nil, true)
		}
	default:
		cl.fail(mesh.ReasonUpstreamReset)
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
	cl.fail(exchange.LostReason(err))
	if cl.in != nil {
		cl.o.Pool.Release(cl.in)
		cl.in = nil
	}
	if cl.o.OnChange != nil {
		cl.o.OnChange(cl, true, err)
	}
}
