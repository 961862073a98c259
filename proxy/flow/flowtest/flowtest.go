// Package flowtest is an in-memory network for tests of protocols on flow.Conn: a clock that stands still, and pairs
// of connections whose bytes move only when the test steps the network.
package flowtest

import (
	"errors"
	"net/netip"
	"syscall"
	"time"

	"conduit.io/conduit/proxy/flow"
)

// ErrAborted is what Closed gets after Abort.
var ErrAborted = errors.New("aborted")

// Net is a set of connections with one clock; it implements flow.Clock. It is not safe for concurrent use.
type Net struct {
	now    int64
	conns  []*Conn
	timers []*timer
	seq    int
}

type timer struct {
	at  int64
	seq int
	f   func()
}

// Stop implements flow.Timer.
func (t *timer) Stop() { t.f = nil }

// New makes an empty Net.
func New() *Net { return &Net{now: 1e9} }

// Now implements flow.Clock.
func (n *Net) Now() int64 { return n.now }

// After implements flow.Clock.
func (n *Net) After(d time.Duration, f func()) flow.Timer {
	n.seq++
	t := &timer{at: n.now + int64(d), seq: n.seq, f: f}
	n.timers = append(n.timers, t)
	return t
}

// Conn is one end of a pair.
type Conn struct {
	// Chunk, if not 0, is the most bytes in one Data callback.
	Chunk int
	// Room is how many bytes the "kernel" takes on the way to this end; beyond, they are the sender's backlog.
	Room int
	// Paused, Closes and Resets show the state of this end: Data is stopped; it was closed, or aborted.
	Paused          bool
	IsClosed, IsRST bool
	// PeakBacklog is the largest backlog that this end has had.
	PeakBacklog int
	// Received counts bytes delivered to the receiver.
	Received int

	sent   int
	net    *Net
	peer   *Conn
	r      flow.Receiver
	out    []byte // backlog
	in     []byte // taken by the kernel, not delivered
	above  bool
	fin    bool // CloseWrite or Close was called
	finOut bool // the FIN has reached the peer
	eof    bool // EOF was delivered
	close  bool
	rst    error
	gone   bool // Closed was delivered
	addr   [2]netip.AddrPort
}

// Pair makes a connection between two ends.
func (n *Net) Pair() (a, b *Conn) {
	x, y := netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("192.0.2.2:80")
	a = &Conn{net: n, Room: 1 << 20, addr: [2]netip.AddrPort{x, y}}
	b = &Conn{net: n, Room: 1 << 20, addr: [2]netip.AddrPort{y, x}, peer: a}
	a.peer = b
	n.conns = append(n.conns, a, b)
	return a, b
}

// SetReceiver implements flow.Conn.
func (c *Conn) SetReceiver(r flow.Receiver) { c.r = r }

func (c *Conn) dead() bool { return c.fin || c.close || c.rst != nil || c.gone }

// Write implements flow.Conn.
func (c *Conn) Write(p []byte) {
	if c.dead() {
		return
	}
	c.out = append(c.out, p...)
	c.PeakBacklog = max(c.PeakBacklog, len(c.out))
	if len(c.out) > flow.HighWater {
		c.above = true
	}
}

// Backlog implements flow.Conn.
func (c *Conn) Backlog() int { return len(c.out) }

// Pause implements flow.Conn.
func (c *Conn) Pause() { c.Paused = true }

// Resume implements flow.Conn.
func (c *Conn) Resume() { c.Paused = false }

// CloseWrite implements flow.Conn.
func (c *Conn) CloseWrite() {
	if !c.dead() {
		c.fin = true
	}
}

// Close implements flow.Conn.
func (c *Conn) Close() {
	if c.rst == nil && !c.gone {
		c.fin, c.close, c.IsClosed = true, true, true
	}
}

// Abort implements flow.Conn.
func (c *Conn) Abort() {
	if c.rst == nil && !c.gone {
		c.rst, c.out, c.IsRST = ErrAborted, nil, true
		if !c.peer.gone && c.peer.rst == nil {
			c.peer.rst = syscall.ECONNRESET
		}
	}
}

// LocalAddr implements flow.Conn.
func (c *Conn) LocalAddr() netip.AddrPort { return c.addr[0] }

// RemoteAddr implements flow.Conn.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.addr[1] }

// Sent counts the bytes that this end has written and the peer's kernel has taken.
func (c *Conn) Sent() int { return c.sent }

// Gone reports whether Closed was delivered.
func (c *Conn) Gone() bool { return c.gone }

// step moves bytes and delivers at most one callback.
func (c *Conn) step() bool {
	if c.gone || c.r == nil {
		return false
	}
	if c.rst != nil {
		return c.end(c.rst)
	}
	moved := c.push()
	if c.above && len(c.out) <= flow.LowWater {
		c.above = false
		if !c.close {
			c.r.Drained()
			return true
		}
	}
	if c.close {
		if len(c.out) > 0 {
			return moved
		}
		if len(c.in) > 0 && !c.peer.gone && c.peer.rst == nil && !c.peer.finOut {
			c.in = nil
		}
		return c.end(nil)
	}
	if c.Paused {
		return moved
	}
	if len(c.in) > 0 {
		k := len(c.in)
		if c.Chunk > 0 {
			k = min(k, c.Chunk)
		}
		p := append([]byte(nil), c.in[:k]...)
		c.in = c.in[k:]
		c.Received += k
		c.r.Data(p)
		for i := range p { // the slice is only valid during the call
			p[i] = 0xee
		}
		return true
	}
	if c.peer.finOut && !c.eof {
		c.eof = true
		c.r.EOF()
		return true
	}
	if c.eof && c.finOut {
		return c.end(nil)
	}
	return moved
}

// push moves backlog to the peer's side as far as there is room.
func (c *Conn) push() bool {
	p := c.peer
	moved := false
	if k := min(len(c.out), max(0, p.Room-len(p.in))); k > 0 {
		if p.gone || p.close {
			c.rst = syscall.ECONNRESET
			return true
		}
		p.in = append(p.in, c.out[:k]...)
		c.sent += k
		c.out = c.out[k:]
		moved = true
	}
	if c.fin && len(c.out) == 0 && !c.finOut {
		c.finOut, moved = true, true
	}
	return moved
}

func (c *Conn) end(err error) bool {
	c.gone = true
	c.r.Closed(err)
	return true
}

// Step lets every connection have one callback; it reports whether anything moved.
func (n *Net) Step() bool {
	moved := n.due()
	for i := 0; i < len(n.conns); i++ {
		moved = n.conns[i].step() || moved
	}
	return moved
}

// Run steps until nothing moves. It panics when that takes absurdly long.
func (n *Net) Run() {
	for range 10_000_000 {
		if !n.Step() {
			return
		}
	}
	panic("flowtest: the network does not come to rest")
}

// due runs the timers whose time has come.
func (n *Net) due() bool {
	for i, t := range n.timers {
		if t.f == nil || t.at <= n.now {
			n.timers = append(n.timers[:i], n.timers[i+1:]...)
			if t.f != nil {
				t.f()
			}
			return true
		}
	}
	return false
}

// Advance moves the clock on and runs the network.
func (n *Net) Advance(d time.Duration) {
	n.now += int64(d)
	n.Run()
}
