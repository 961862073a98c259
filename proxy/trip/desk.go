package trip

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/mtls"
	"conduit.io/conduit/proxy/sock"

	"golang.org/x/sys/unix"
)

// queuedEvery is the sample of accepted connections of which the kernel is asked how long they waited.
const queuedEvery = 8

// complainEvery is how often, at most, the log has the same warning.
const complainEvery = time.Minute

// spareEvery is how often, at most, upstream connections are given up for want of descriptors.
const spareEvery = 200 * time.Millisecond

// Desk is what the trips of one shard share.
type Desk struct {
	Loop    *loop.Loop
	Book    *meter.Book
	Process *meter.Process
	Log     *slog.Logger
	// Spare closes the upstream connections that carry nothing now, and reports whether there were any.
	Spare func() bool

	complained map[string]int64 // when the log had a warning
	spareDue   int64
	accepted   uint   // connections
	noteDue    int64  // no earlier than that is a note left for another proxy
	wheel      *wheel // of the limits; nil until there is one
}

func (d *Desk) limits() *wheel {
	if d.wheel == nil {
		d.wheel = newWheel(d.Loop)
	}
	return d.wheel
}

// Short is what a listener calls that has run short of descriptors (see sock.Listener).
func (d *Desk) Short(rests, refused int) {
	d.spare()
	d.Process.ConnectionsFailed(mesh.ReasonOverload, refused)
	if rests == 0 {
		d.Process.AcceptStops.Add(1)
	}
	if d.complain("descriptors") {
		d.Log.Warn("descriptors are short: clients wait to be accepted, and are refused after a second; "+
			"see which clients hold connections open, or raise the limit of open files (RLIMIT_NOFILE)", "limit", sock.Descriptors())
	}
}

// Lacking is a pool's Options.Lacking.
func (d *Desk) Lacking(err error) bool {
	return (errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)) && d.spare()
}

func (d *Desk) spare() bool {
	now := d.Loop.Now()
	if now < d.spareDue {
		return false
	}
	d.spareDue = now + int64(spareEvery)
	return d.Spare()
}

// HandshakeFailed counts err, if it is a TLS handshake's and not of the dial before it. A certificate that was not accepted,
// the peer's or ours, is worth a warning, of each reason once in a while. role is what the peer is to us, client or upstream.
func (d *Desk) HandshakeFailed(err error, role string, peer netip.AddrPort) {
	var dial *sock.DialError
	if errors.As(err, &dial) || errors.Is(err, loop.ErrStopped) {
		return
	}
	reason := sock.Reason(err)
	d.Process.HandshakeFailed(reason)
	level := slog.LevelDebug
	var ours *mtls.VerifyError
	if (errors.As(err, &ours) || sock.Refused(err)) && d.complain(role+string(reason)) {
		level = slog.LevelWarn
	}
	d.Log.Log(context.Background(), level, "handshake failed", role, peer, "reason", string(reason), "error", err)
}

// Lost is told what a connection to an upstream has ended with. With TLS 1.3 a server says that it does not accept our
// certificate when the handshake is over for us.
func (d *Desk) Lost(err error, upstream netip.AddrPort) {
	if sock.Refused(err) {
		d.HandshakeFailed(err, "upstream", upstream)
	}
}

// complain reports whether a warning is due, which is told by its key.
func (d *Desk) complain(key string) bool {
	now := d.Loop.Now()
	if last, ok := d.complained[key]; ok && now-last < int64(complainEvery) {
		return false
	}
	if d.complained == nil {
		d.complained = map[string]int64{}
	}
	d.complained[key] = now
	return true
}

// Queued is how long a connection that has just been accepted waited for it, or negative: it is not in the sample.
func (d *Desk) Queued(c *sock.Conn) time.Duration {
	d.accepted++
	if d.accepted%queuedEvery != 1 {
		return -1
	}
	return c.Queued()
}
