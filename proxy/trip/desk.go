package trip

import (
	"log/slog"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/sock"
)

// queuedEvery is the sample of accepted connections of which the kernel is asked how long they waited.
const queuedEvery = 8

// complainEvery is how often, at most, the log says that descriptors are short.
const complainEvery = time.Minute

// Desk is what the trips of one shard share.
type Desk struct {
	Loop    *loop.Loop
	Book    *meter.Book
	Process *meter.Process
	Log     *slog.Logger

	complainDue int64 // no earlier than that is the want of descriptors logged again

	accepted uint   // connections
	noteDue  int64  // no earlier than that is a note left for another proxy
	wheel    *wheel // of the limits; nil until there is one
}

func (d *Desk) limits() *wheel {
	if d.wheel == nil {
		d.wheel = newWheel(d.Loop)
	}
	return d.wheel
}

// Short is what a listener calls that has run short of descriptors (see sock.Listener).
func (d *Desk) Short(refused int) {
	if refused > 0 {
		d.Process.ConnectionsFailed(mesh.ReasonOverload, refused)
	} else {
		d.Process.AcceptStops.Add(1)
	}
	if now := d.Loop.Now(); now >= d.complainDue {
		d.complainDue = now + int64(complainEvery)
		d.Log.Warn("descriptors are short: clients wait to be accepted, and are refused after a second; "+
			"see which clients hold connections open, or raise the limit of open files (RLIMIT_NOFILE)", "limit", sock.Descriptors())
	}
}

// Queued is how long a connection that has just been accepted waited for it, or negative: it is not in the sample.
func (d *Desk) Queued(c *sock.Conn) time.Duration {
	d.accepted++
	if d.accepted%queuedEvery != 1 {
		return -1
	}
	return c.Queued()
}
