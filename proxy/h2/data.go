package h2

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

func unpad(flags byte, p []byte) ([]byte, error) {
	if flags&flPadded == 0 {
		return p, nil
	}
	if len(p) == 0 || int(p[0]) >= len(p) {
		return nil, fatal(codeProtocol, "padding is longer than the frame")
	}
	return p[1 : len(p)-int(p[0])], nil
}

func (c *conn) onData(flags byte, id uint32, p []byte) error {
	if id == 0 {
		return fatal(codeProtocol, "DATA on the connection")
	}
	full := int32(len(p))
	p, err := unpad(flags, p)
	if err != nil {
		return err
	}
	if c.used += full; c.used > c.recvWin {
		return fatal(codeFlow, "the connection window is exceeded")
	}
	end := flags&flEndStream != 0
	if len(p) == 0 && !end {
		r := c.window()
		if r.empty++; r.empty > maxEmpty {
			return calm(mesh.AbuseEmpty, "too many empty DATA frames")
		}
	}
	s := c.streams.get(id)
	if s == nil {
		c.creditConn(full)
		return c.role.unknown(id, frData)
	}
	port := s.Port(c.side)
	n := int32(len(p))
	var code uint32
	switch {
	case port.GotEnd:
		code = codeStreamClosed
	case port.Held+port.Unacked+full > streamWindow:
		code = codeFlow
	case c.side == exchange.Up && s.Res == nil:
		code = codeProtocol
	case port.Left >= 0:
		if port.Left -= int64(n); port.Left < 0 || end && port.Left > 0 {
			code = codeProtocol // content-length does not match (RFC 9113, 8.1.1)
		}
	}
	if code != 0 {
		c.creditConn(full)
		return c.streamError(id, code)
	}
	if full > n {
		c.credit(port, full-n)
	}
	port.GotEnd = end
	s.Data(c.side, p, end)
	if port.Held > port.Parked && c.streams.get(id) == s {
		c.park(port)
	}
	return nil
}

// park credits the connection for what a stream could not pass on, so that nothing but the stream's own window is filled
// with it: one who does not read stalls nobody else. The bound is that of the shard, which drops who holds most before it is
// reached (package shed); beyond it the connection waits with the stream.
func (c *conn) park(p *exchange.Port) {
	n := int32(c.pool.Park(int(p.Held - p.Parked)))
	p.Parked += n
	c.parked += n
	c.creditConn(n)
}

func (c *conn) unpark(p *exchange.Port, n int32) {
	p.Parked -= n
	c.parked -= n
	c.pool.Unpark(int(n))
}

// credit returns n bytes of a stream's window, and of the connection's.
func (c *conn) credit(p *exchange.Port, n int32) {
	c.creditConn(n)
	c.creditStream(p, n)
}

func (c *conn) creditStream(p *exchange.Port, n int32) {
	if p.GotEnd {
		return
	}
	if p.Unacked += n; p.Unacked >= streamWindow/4 && !c.over {
		c.write32(frWindow, p.ID, uint32(p.Unacked))
		p.Unacked = 0
	}
}

func (c *conn) creditConn(n int32) {
	if c.unacked += n; c.unacked >= c.recvWin/4 && !c.over {
		c.write32(frWindow, 0, uint32(c.unacked))
		c.used -= c.unacked
		c.unacked = 0
	}
}

// Credit implements exchange.Half.
func (c *conn) Credit(s *exchange.Stream, n int) {
	p := s.Port(c.side)
	if p.Parked == 0 {
		c.credit(p, int32(n))
		return
	}
	k := min(int32(n), p.Parked)
	c.unpark(p, k)
	c.creditConn(int32(n) - k)
	c.creditStream(p, int32(n))
}

// Write implements exchange.Half.
func (c *conn) Write(s *exchange.Stream, p []byte, end bool) int {
	if c.over {
		return len(p)
	}
	port := s.Port(c.side)
	if len(p) == 0 {
		if end {
			port.SentEnd = true
			c.c.Write(appendFrame(c.buf[:0], 0, frData, flEndStream, port.ID))
		}
		return 0
	}
	room := int(max(0, min(int64(port.Window), c.sendWin, int64(len(p)))))
	n := 0
	for n < room && c.c.Backlog() <= flow.HighWater {
		k := min(maxFrame, room-n)
		var fl byte
		if end && n+k == len(p) {
			fl, port.SentEnd = flEndStream, true
		}
		c.c.Write(appendFrame(c.buf[:0], k, frData, fl, port.ID))
		c.c.Write(p[n : n+k])
		n += k
		c.sent++
		c.taken += uint64(k)
	}
	port.Window -= int32(n)
	c.sendWin -= int64(n)
	if n < len(p) && port.Window > 0 && !port.Blocked {
		port.Blocked = true
		c.blocked = append(c.blocked, s.Ref())
	}
	return n
}

// WriteTrailers implements exchange.Half.
func (c *conn) WriteTrailers(s *exchange.Stream, f []hpack.HeaderField) {
	if c.over {
		return
	}
	s.Port(c.side).SentEnd = true
	c.hp.begin(c.pool)
	for i := range f {
		c.hp.field(f[i])
	}
	c.writeBlock(s.Port(c.side).ID, true, c.hp.finish(c.pool))
}

// writeBlock writes a header block, in as many frames as it needs.
func (c *conn) writeBlock(id uint32, end bool, b []byte) {
	typ, fl := byte(frHeaders), byte(0)
	if end {
		fl = flEndStream
	}
	for {
		k := min(len(b), maxFrame)
		if k == len(b) {
			fl |= flEndHeaders
		}
		c.c.Write(appendFrame(c.buf[:0], k, typ, fl, id))
		c.c.Write(b[:k])
		if b = b[k:]; len(b) == 0 {
			return
		}
		typ, fl = frContinuation, 0
	}
}

func (c *conn) onWindow(id uint32, p []byte) error {
	if len(p) != 4 {
		return fatal(codeFrameSize, "WINDOW_UPDATE is not 4 bytes")
	}
	inc := int64(be32(p) & maxWindow)
	s := c.streams.get(id)
	if err := c.opened(inc, id == 0 && c.sendWin <= 0 || s != nil && s.Port(c.side).Window <= 0); err != nil {
		return err
	}
	if id == 0 {
		if inc == 0 {
			return fatal(codeProtocol, "WINDOW_UPDATE of 0")
		}
		if c.sendWin += inc; c.sendWin > maxWindow {
			return fatal(codeFlow, "the connection window overflows")
		}
		c.unblock()
		return nil
	}
	if s == nil {
		return c.role.unknown(id, frWindow)
	}
	port := s.Port(c.side)
	switch w := int64(port.Window) + inc; {
	case inc == 0:
		return c.streamError(id, codeProtocol)
	case w > maxWindow:
		return c.streamError(id, codeFlow)
	default:
		port.Window = int32(w)
	}
	s.Pump(c.side)
	return nil
}

// Drained implements flow.Receiver.
func (c *conn) Drained() {
	c.unblock()
	if c.choked {
		c.choked = false
		c.goOn()
	}
	c.role.settled()
}

// unblock lets the streams that waited for the connection go on, in turn.
func (c *conn) unblock() {
	for n := len(c.blocked) - c.front; n > 0 && c.front < len(c.blocked) && !c.over && c.sendWin > 0 && c.c.Backlog() <= flow.HighWater; n-- {
		r := c.blocked[c.front]
		c.blocked[c.front] = exchange.Ref{}
		c.front++
		if r.Live() {
			r.S.Port(c.side).Blocked = false
			r.S.Pump(c.side)
		}
	}
	switch {
	case c.front == len(c.blocked):
		c.blocked, c.front = c.blocked[:0], 0
		if cap(c.blocked) > 256 {
			c.blocked = nil
		}
	case c.front > len(c.blocked)/2:
		c.blocked, c.front = c.blocked[:copy(c.blocked, c.blocked[c.front:])], 0
	}
}

// forgetBlocked drops those that have ended from the streams that wait.
func (c *conn) forgetBlocked() {
	l := c.blocked[:0]
	for _, r := range c.blocked[c.front:] {
		if r.S != nil && r.Live() {
			l = append(l, r)
		}
	}
	clear(c.blocked[len(l):])
	c.blocked, c.front = l, 0
}
