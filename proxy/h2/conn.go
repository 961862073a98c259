package h2

import (
	"errors"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"
)

// role is what server and client do differently.
type role interface {
	headers(id uint32, end bool, b *block) error
	reset(s *exchange.Stream, code uint32)        // by the peer, or by the end of the connection
	broke(s *exchange.Stream, reason mesh.Reason) // by us, because of what the peer did
	goAway(last, code uint32)
	settled() // SETTINGS, or a drained backlog: there may be room
	acked()   // the answer to a PING
	violated(e *connError)
	unknown(id uint32, typ byte) error // a frame on a stream that is not open
	idle()                             // the last stream has ended
	begun()                            // both sides have agreed on their SETTINGS
	slow(s *exchange.Stream)           // its request's body comes too slowly
}

// conn is the part that both sides share.
type conn struct {
	c        flow.Conn
	pool     *exchange.Pool
	clock    flow.Clock
	role     role
	side     exchange.Side
	internal bool

	in       []byte // an incomplete frame
	rest     []byte // input that waits for the output to drain
	pre      int    // bytes of the preface still expected (server)
	connects bool   // extended CONNECT is taken (server; RFC 8441)
	extended bool   // the peer takes it (client)
	first    bool   // the peer's first SETTINGS has come
	acks     bool   // the peer has acknowledged ours
	over     bool   // closing: nothing more is read or written
	streams  table

	hdrID    uint32 // stream of the header block being collected
	hdrEnd   bool
	hdrHuge  bool // it is too large: only the table takes notice of it
	hdrCount int
	hdrBlock []byte

	hp hpackState

	sendWin  int64 // connection window toward the peer
	initWin  int32
	recvWin  int32
	used     int32 // received and not credited to the peer
	unacked  int32 // of them, ready to be credited
	parked   int32 // credited, but not forwarded yet
	maxPeer  uint32
	blocked  []exchange.Ref // streams that wait for the connection, in turn; those before front have had it
	front    int
	draining bool
	choked   bool // a server's input is paused until its output has drained
	tired    bool // input is paused until the next turn
	turn     int64
	spent    int // in this turn

	watch    flow.Timer // of the greeting, then of idleness or silence
	greeting bool       // it is of the greeting
	sure     bool       // see again
	dozing   bool       // see doze
	heard    uint32     // how often something came
	mark     uint32     // of the last stream, or of heard

	pacer    flow.Timer
	inSince  int64 // when the incomplete frame began, and the header block
	hdrSince int64

	kept   int    // input that the pool knows to be kept
	taken  uint64 // bytes of DATA sent
	sent   uint32 // DATA frames
	rate   rates
	resets []uint32 // ring of streams that we reset: frames for them are in flight. Once it is full, nobody knows.
	nreset int

	buf [32]byte
}

func (c *conn) init(fc flow.Conn, pool *exchange.Pool, clock flow.Clock, side exchange.Side, internal bool, r role) {
	if pool == nil {
		pool = exchange.NewPool()
	}
	c.c, c.pool, c.clock, c.side, c.internal, c.role = fc, pool, clock, side, internal, r
	c.sendWin, c.initWin, c.maxPeer = 65535, 65535, assumedStreams
	c.recvWin = connWindow
	if internal {
		c.recvWin = connWindowLink
	}
}

// greet writes our SETTINGS and opens the connection window.
func (c *conn) greet() {
	b := c.pool.Bytes[:0]
	if c.side == exchange.Up {
		b = append(b, Preface...)
	}
	at := len(b)
	b = appendFrame(b, 0, frSettings, 0, 0)
	b = appendSetting(b, setMaxStreams, advertised)
	b = appendSetting(b, setWindow, streamWindow)
	b = appendSetting(b, setListSize, maxBlock)
	if c.side == exchange.Up {
		b = appendSetting(b, setPush, 0)
	} else if c.connects {
		b = appendSetting(b, setConnect, 1)
	}
	b[at+2] = byte(len(b) - at - frameHeader)
	b = append32(appendFrame(b, 4, frWindow, 0, 0), uint32(c.recvWin-65535))
	c.pool.Bytes = b
	c.c.Write(b)
	c.expectGreeting()
}

// Data implements flow.Receiver.
func (c *conn) Data(p []byte) {
	c.heard++
	c.consume(p)
	if c.side == exchange.Down {
		c.keep()
	}
}

func (c *conn) consume(p []byte) {
	for len(p) > 0 && !c.over {
		if c.choked || c.tired {
			c.wait(p)
			return
		}
		var n int
		var err error
		switch {
		case c.pre > 0:
			n, err = c.preface(p)
		case c.in != nil:
			n, err = c.complete(p)
		default:
			n, err = c.frames(p)
			if err == nil && n < len(p) && !c.over && !c.choked && !c.tired {
				c.in = c.pool.Hold(p[n:])
				n = len(p)
				c.inSince = 0
				c.begin(&c.inSince)
			}
		}
		if err != nil {
			c.die(err)
			return
		}
		p = p[n:]
	}
}

func (c *conn) preface(p []byte) (int, error) {
	n := min(c.pre, len(p))
	if at := len(Preface) - c.pre; string(p[:n]) != Preface[at:at+n] {
		return 0, fatal(codeProtocol, "bad connection preface")
	}
	c.pre -= n
	return n, nil
}

// frames handles the complete frames at the start of p, in place.
func (c *conn) frames(p []byte) (int, error) {
	n := 0
	for len(p)-n >= frameHeader && !c.over && !c.choked && !c.tired {
		l := int(p[n])<<16 | int(p[n+1])<<8 | int(p[n+2])
		if l > maxFrame {
			return n, fatal(codeFrameSize, "frame is too large")
		}
		if len(p)-n < frameHeader+l {
			break
		}
		f := p[n : n+frameHeader+l]
		n += frameHeader + l
		if err := c.frame(f); err != nil {
			return n, err
		}
		c.choke()
		c.spend(f[3])
	}
	return n, nil
}

// complete takes from p what the frame that c.in begins still needs.
func (c *conn) complete(p []byte) (int, error) {
	n := 0
	if k := frameHeader - len(c.in); k > 0 {
		n = min(k, len(p))
		c.in = append(c.in, p[:n]...)
		if n < k {
			return n, nil
		}
	}
	l := int(c.in[0])<<16 | int(c.in[1])<<8 | int(c.in[2])
	if l > maxFrame {
		return n, fatal(codeFrameSize, "frame is too large")
	}
	k := min(frameHeader+l-len(c.in), len(p)-n)
	c.in = append(c.in, p[n:n+k]...)
	n += k
	if len(c.in) < frameHeader+l {
		return n, nil
	}
	f := c.in
	c.in = nil
	err := c.frame(f)
	c.spend(f[3])
	c.pool.Release(f)
	return n, err
}

func (c *conn) frame(f []byte) error {
	typ, flags, id := f[3], f[4], be32(f[5:])&maxWindow
	p := f[frameHeader:]
	if !c.first && (typ != frSettings || flags&flAck != 0) {
		return fatal(codeProtocol, "the first frame is not SETTINGS")
	}
	if c.hdrID != 0 && (typ != frContinuation || id != c.hdrID) {
		return fatal(codeProtocol, "a header block is interrupted")
	}
	switch typ {
	case frData:
		return c.onData(flags, id, p)
	case frHeaders:
		return c.onHeaders(flags, id, p)
	case frContinuation:
		return c.onContinuation(flags, id, p)
	case frWindow:
		return c.onWindow(id, p)
	case frReset:
		return c.onReset(id, p)
	case frSettings:
		return c.onSettings(flags, id, p)
	case frPing:
		return c.onPing(flags, id, p)
	case frGoAway:
		if id != 0 {
			return fatal(codeProtocol, "GOAWAY on a stream")
		}
		if len(p) < 8 {
			return fatal(codeFrameSize, "GOAWAY is too short")
		}
		if err := c.reconfigured(1); err != nil {
			return err
		}
		c.role.goAway(be32(p)&maxWindow, be32(p[4:]))
	case frPush:
		return fatal(codeProtocol, "PUSH_PROMISE is not accepted")
	case frPriority:
		return c.onPriority(id, p)
	case frClientEnd:
		return c.onClientEnd(id)
	default:
		return c.control(mesh.AbuseFrames)
	}
	return nil
}

// write32 writes a frame whose payload is one number.
func (c *conn) write32(typ byte, id, v uint32) {
	c.c.Write(append32(appendFrame(c.buf[:0], 4, typ, 0, id), v))
}

// rst resets a stream that is no longer in the table.
func (c *conn) rst(id, code uint32) {
	if c.over {
		return
	}
	c.write32(frReset, id, code)
	if c.resets == nil {
		c.resets = make([]uint32, 64)
	}
	c.resets[c.nreset%len(c.resets)] = id
	c.nreset++
}

// wasReset reports whether we reset the stream lately.
func (c *conn) wasReset(id uint32) bool {
	for _, x := range c.resets {
		if x == id {
			return true
		}
	}
	return false
}

// forget drops a stream from those that we reset.
func (c *conn) forget(id uint32) {
	for i, x := range c.resets {
		if x == id {
			c.resets[i] = 0
		}
	}
}

// remove takes s out of the table and gives the connection window back what s still held.
func (c *conn) remove(s *exchange.Stream) {
	p := s.Port(c.side)
	c.streams.del(p.ID)
	if p.Blocked && len(c.blocked) > 2*c.streams.len()+64 {
		c.forgetBlocked()
	}
	held := p.Held - p.Parked
	p.Held = 0
	c.unpark(p, p.Parked)
	c.creditConn(held)
}

// die ends the connection because the peer broke the protocol.
func (c *conn) die(err error) {
	if c.over {
		return
	}
	var ce *connError
	if !errors.As(err, &ce) {
		ce = &connError{code: codeInternal, text: err.Error()}
	}
	c.role.violated(ce)
	c.writeGoAway(c.hp.lastID, ce.code)
	c.shut()
	if c.c.Backlog() > maxBacklog/2 { // it does not read, and would be waited for
		c.c.Abort()
	}
}

func (c *conn) writeGoAway(last, code uint32) {
	b := appendFrame(c.buf[:0], 8, frGoAway, 0, 0)
	c.c.Write(append32(append32(b, last), code))
}

// shut closes the connection; Closed ends what streams are left.
func (c *conn) shut() {
	if c.over {
		return
	}
	c.over = true
	c.abortAll()
	c.c.Close()
}

// abortAll ends every stream that still expects something of the connection.
func (c *conn) abortAll() {
	for _, r := range c.streams.refs() {
		if r.Live() && !r.S.Port(c.side).Complete() {
			c.remove(r.S)
			c.role.reset(r.S, codeNo)
		}
	}
}

// free releases what the connection holds, at its end.
func (c *conn) free() {
	c.over = true
	if c.watch != nil {
		c.watch.Stop()
		c.watch = nil
	}
	if c.in != nil {
		c.pool.Release(c.in)
		c.in = nil
	}
	c.rest, c.hdrBlock, c.blocked = nil, nil, nil
	if c.pacer != nil {
		c.pacer.Stop()
	}
	c.keep()
}

// EOF implements flow.Receiver: an HTTP/2 connection has no use for one direction.
func (c *conn) EOF() { c.shut() }
