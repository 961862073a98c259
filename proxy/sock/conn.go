// Package sock makes flow.Conns of TCP sockets: accepted, dialled (inside a pod's network namespace if need be), plain
// or under TLS. Everything runs on the goroutine of the connection's loop.
package sock

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"time"

	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

const (
	// flushAt is the queue at which it is written before the end of the batch: while its bytes are in the cache.
	flushAt = 40 << 10
	// direct is the size from which bytes are written without going through the queue.
	direct = 8 << 10
	// plainBytes is what a read of a plain connection takes at most. Written again, as TLS records even, it fits the
	// largest segment that TCP hands to a device (64 KiB), instead of one and a scrap.
	plainBytes = 62 << 10
	// turnBytes is how much one connection may deliver before the others get their turn.
	turnBytes = 64 << 10
	// recordCost is how many of them a TLS record costs at least, however little is in it.
	recordCost = 512
	// flushTimeout bounds how long a closed connection waits for a peer that takes nothing. The kernel has about as much
	// patience with a socket that its process has closed (tcp_orphan_retries, tcp(7)): a client that stops reading for a while
	// gets the last bytes with a proxy in between as it would without.
	flushTimeout = 2 * time.Minute
	// lingerTimeout bounds how long a closed connection waits for the peer's FIN. Closing with bytes unread would
	// make the kernel send RST, which can destroy the bytes in flight to the peer.
	lingerTimeout = 2 * time.Second
	// lingerMax is how many bytes more it reads for that, and throws away: more than an HTTP/2 client may have under way.
	// Whoever sends on has to wait.
	lingerMax = 8 << 20
	// deadTimeout bounds how long a connection that is paused stays after the peer has reset it.
	deadTimeout = 30 * time.Second
)

// stage is what a connection does before it carries data: it is being dialled, or shakes hands.
type stage interface {
	ready(ev loop.Events)
	cancel()  // Close or Abort was called
	stopped() // the loop has ended: nothing can be put off
}

// Conn is a flow.Conn over a socket. The zero Conn is not usable; see NewConn, Listen and Dial.
type Conn struct {
	l     *loop.Loop
	rcv   flow.Receiver
	stage stage
	tls   *session
	out   queue // for the kernel: ciphertext under TLS
	pipe  *pipe // bytes that are before those of out
	timer flow.Timer
	err   error // why it ended; while it lives: a write has failed, and what the peer had sent is still delivered
	fd    int

	local, remote netip.AddrPort

	unwanted int // bytes read since Close

	paused  bool // the receiver wants no data
	canRead bool // the kernel may have something
	hup     bool // it certainly has: FIN, error or urgent data; a short read is not the end
	reset   bool // an error event came while there may have been bytes to read
	eof     bool // the peer's direction has ended
	fin     bool // our direction is to end
	finSent bool
	closing bool // Close was called
	dead    bool // the descriptor is closed
	told    bool // Closed was called
	over    bool // the backlog has passed HighWater, and Drained is due
	blocked bool // the kernel takes no more
	dirty   bool // in the loop's flush list
	queued  bool // in the loop's Soon list
	stuck   bool // it waits for another's pipe to be empty
	bulk    int8 // reads in succession that brought much
}

var _ flow.Conn = (*Conn)(nil)

// NewConn makes a Conn of the connected stream socket fd, which it owns from now on, also if it fails. It must be
// called on l's goroutine.
func NewConn(l *loop.Loop, fd int) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("adopt socket: %w", err)
	}
	setOptions(fd)
	return adopt(l, fd, sockName(fd, unix.SYS_GETPEERNAME))
}

// adopt takes over a non-blocking socket with its options set.
func adopt(l *loop.Loop, fd int, remote netip.AddrPort) (*Conn, error) {
	c := &Conn{l: l, fd: fd, remote: remote}
	if err := l.Watch(fd, (*events)(c)); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, nil
}

func dupFile(f *os.File) (int, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, derr := -1, error(nil)
	if err := rc.Control(func(old uintptr) { fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return -1, err
	}
	return fd, derr
}

// LocalAddr implements flow.Conn. Of a steered connection it is the address that the client dialled.
func (c *Conn) LocalAddr() netip.AddrPort {
	if !c.local.IsValid() && !c.dead {
		c.local = sockName(c.fd, unix.SYS_GETSOCKNAME)
	}
	return c.local
}

// RemoteAddr implements flow.Conn.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// TLS is the state of the TLS session, nil without one. It is a copy, made anew at every call. A server's has the client's
// certificates until StartTLS's done has returned.
func (c *Conn) TLS() *tls.ConnectionState {
	if c.tls == nil || c.stage != nil {
		return nil // a handshake that is under way holds the session's lock
	}
	cs := c.tls.tc.ConnectionState()
	return &cs
}

// Queued is how long the connection waited to be accepted. It is to be asked before anything is written. The kernel tells
// to one of its ticks, of 1 to 10 ms: what it calls the time since data was last sent counts from the end of the
// TCP handshake as long as there was none. Negative: the socket is not one of TCP.
func (c *Conn) Queued() time.Duration {
	i, err := unix.GetsockoptTCPInfo(c.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return -1
	}
	return time.Duration(i.Last_data_sent) * time.Millisecond
}

// SetUserTimeout aborts the connection when the peer's kernel does not acknowledge for d, or keeps its window shut for
// d (TCP_USER_TIMEOUT, tcp(7)). It is for links between proxies, whose peers always read; an application may rightly
// stop reading for longer.
func (c *Conn) SetUserTimeout(d time.Duration) {
	if !c.dead {
		setUserTimeout(c.fd, d)
	}
}

// SetReceiver implements flow.Conn. If the connection has ended meanwhile, r gets its Closed.
func (c *Conn) SetReceiver(r flow.Receiver) {
	c.rcv = r
	c.soon()
}

// Pause implements flow.Conn.
func (c *Conn) Pause() {
	if !c.paused {
		c.paused = true
		if c.reset && !c.closing && !c.dead {
			c.wait(deadTimeout)
		}
	}
}

// halted reports whether nothing is to be read for the time being.
func (c *Conn) halted() bool { return c.paused || c.stuck }

// Resume implements flow.Conn.
func (c *Conn) Resume() {
	if c.paused {
		c.paused = false
		c.goOn()
	}
}

// goOn reads again, unless something else is against it.
func (c *Conn) goOn() {
	if c.halted() {
		return
	}
	if c.reset && !c.closing && c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.soon()
}

// Close implements flow.Conn.
func (c *Conn) Close() {
	if c.dead || c.closing {
		return
	}
	if c.stage != nil {
		c.stage.cancel()
		return
	}
	c.closing, c.fin = true, true
	if c.finSent {
		c.wait(lingerTimeout)
	} else {
		c.wait(flushTimeout)
	}
	c.mark()
	c.soon()
}

// Abort implements flow.Conn.
func (c *Conn) Abort() {
	if !c.dead && c.stage != nil {
		c.stage.cancel()
		return
	}
	c.end(ErrAborted, true)
	c.soon()
}

// wait starts the clock of a connection that is to end anyway.
func (c *Conn) wait(d time.Duration) {
	if c.timer != nil {
		c.timer.Stop()
	}
	c.timer = c.l.After(d, c.expired)
}

// expired ends a connection whose peer did not do its part in time.
func (c *Conn) expired() {
	c.timer = nil
	switch {
	case c.dead:
	case c.closing && c.finSent:
		c.finish(nil, false) // everything was written; the peer only keeps its own direction open
	case c.closing:
		c.finish(ErrStalled, true)
	case c.halted():
		err := sockError(c.fd)
		if err == nil {
			err = unix.ECONNRESET
		}
		c.finish(cause(err), false)
	}
}

// end closes the descriptor; the receiver is told later, by tell.
func (c *Conn) end(err error, reset bool) {
	if c.dead {
		return
	}
	c.dead, c.err = true, err
	c.out.reset()
	c.dropPipe()
	if c.tls != nil {
		c.tls.release()
	}
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.l.Forget(c.fd)
	if reset {
		resetClose(c.fd)
	} else {
		unix.Close(c.fd)
	}
}

// finish is end and tell. It must not be called from within a call by the receiver.
func (c *Conn) finish(err error, reset bool) {
	c.end(alerted(err), reset)
	c.tell()
}

// tell delivers the last callback, once there is somebody to deliver it to.
func (c *Conn) tell() {
	if c.dead && !c.told && c.rcv != nil {
		c.told = true
		r := c.rcv
		c.rcv = nil
		r.Closed(c.err)
	}
}

// soon queues the connection to be looked at later: something was asked for inside a call by the receiver.
func (c *Conn) soon() {
	if !c.queued {
		c.queued = true
		c.l.Soon((*events)(c))
	}
}

// mark queues the connection to be flushed at the end of the batch.
func (c *Conn) mark() {
	if !c.dirty && !c.dead {
		c.dirty = true
		c.l.AtEnd((*events)(c))
	}
}

// events is Conn as its loop sees it.
type events Conn

// Ready implements loop.Handler.
func (e *events) Ready(ev loop.Events) {
	c := (*Conn)(e)
	if ev&loop.Out != 0 && c.blocked {
		c.blocked = false
		c.mark()
	}
	if ev&(loop.In|loop.Hup) != 0 {
		c.canRead = true
		c.hup = c.hup || ev&(loop.Hup|loop.Pri) != 0
	}
	if c.stage != nil {
		c.stage.ready(ev)
		return
	}
	if ev&loop.Err != 0 && c.broken() {
		return
	}
	c.read()
}

// broken handles an error event that no read would meet; it reports true when the connection has ended.
func (c *Conn) broken() bool {
	switch {
	case c.dead:
		return true
	case c.eof: // nobody reads any more
		if err := sockError(c.fd); err != nil {
			c.finish(cause(err), false)
			return true
		}
	default:
		// Bytes that came before the reset may still be wanted, but not for ever.
		c.reset = true
		if c.halted() && !c.closing && c.timer == nil {
			c.wait(deadTimeout)
		}
	}
	return false
}

// Run implements loop.Task.
func (e *events) Run() {
	c := (*Conn)(e)
	c.queued = false
	if c.dead {
		c.tell()
		return
	}
	if c.stage == nil {
		c.read()
	}
}

// Flush implements loop.Flusher.
func (e *events) Flush() {
	c := (*Conn)(e)
	c.dirty = false
	if c.dead || c.stage != nil {
		return
	}
	c.push()
	c.settle()
}

// Stopped implements loop.Handler.
func (e *events) Stopped() {
	c := (*Conn)(e)
	if c.stage != nil {
		c.stage.stopped()
		return
	}
	c.finish(loop.ErrStopped, true)
}
