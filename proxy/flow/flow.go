// Package flow is the contract between sockets and protocols inside the proxy: a byte stream in both directions that
// never blocks, owned by one shard loop. Every method and every callback runs on the goroutine of that loop.
package flow

import (
	"net/netip"
	"time"
)

const (
	// HighWater is the backlog in bytes above which a producer must pause its source; Drained follows when the
	// backlog falls to LowWater.
	HighWater = 64 << 10
	// LowWater is the backlog at which producers resume.
	LowWater = 16 << 10
)

// Conn is a connection: a TCP socket, a TLS session over one, or a test's in-memory pair.
type Conn interface {
	// SetReceiver says who gets the callbacks from now on. Bytes that arrive before a receiver is set wait in the
	// kernel. It may be called inside a callback; the remainder of a Data slice is the old receiver's to hand on.
	SetReceiver(r Receiver)
	// Write queues p, which is copied. Output is written to the kernel at the end of the loop's batch, or earlier
	// when much is queued. Writes after CloseWrite, Close, Abort or Closed are dropped.
	Write(p []byte)
	// Backlog is how many bytes are queued that the kernel has not taken.
	Backlog() int
	// Pause stops Data callbacks (and so, soon, the peer); Resume starts them again. They do not nest. Resume may
	// deliver Data before the end of the batch, but never before it returns.
	Pause()
	Resume()
	// CloseWrite sends FIN (TLS: close_notify and FIN) after the queue is written.
	CloseWrite()
	// Close closes both directions after the queue is written; no callback but Closed follows. A peer that does not
	// take the queue within a bound is aborted.
	Close()
	// Abort drops the queue and resets the connection (RST). Only Closed follows, after Abort returns.
	Abort()
	// LocalAddr and RemoteAddr have IPv4 unmapped.
	LocalAddr() netip.AddrPort
	RemoteAddr() netip.AddrPort
}

// Receiver is a protocol on top of a Conn.
type Receiver interface {
	// Data delivers bytes, valid only during the call, in which the receiver may overwrite them. It takes all of them.
	Data(p []byte)
	// EOF says that the peer has finished sending (FIN, or close_notify). Writing may go on.
	EOF()
	// Drained says that the backlog, which had passed HighWater, has fallen to LowWater.
	Drained()
	// Closed is the last callback, exactly once; err is nil after an orderly end of both directions, otherwise the
	// cause (syscall.ECONNRESET, a TLS alert, ErrAborted ...).
	Closed(err error)
}

// Shortcut is a Receiver through which bytes may pass unseen.
type Shortcut interface {
	Receiver
	// Beyond is the connection to which everything that arrives would be written next, as it is; nil when Data is to
	// have it, or nothing may be written there at present. It is asked anew every time.
	Beyond() Conn
	// Passed says that n bytes have gone there.
	Passed(n int)
}

// Clock is the loop's time.
type Clock interface {
	// Now is the time at the start of the batch, in nanoseconds since some fixed point; monotonic.
	Now() int64
	// After runs f on the loop after d, unless stopped.
	After(d time.Duration, f func()) Timer
}

// Timer is a pending call of After.
type Timer interface {
	// Stop prevents the call; harmless when it has run.
	Stop()
}
