package trip

import (
	"time"

	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/sock"
)

// queuedEvery is the sample of accepted connections of which the kernel is asked how long they waited.
const queuedEvery = 8

// Desk is what the trips of one shard share.
type Desk struct {
	Loop    *loop.Loop
	Book    *meter.Book
	Process *meter.Process

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

// Queued is how long a connection that has just been accepted waited for it, or negative: it is not in the sample.
func (d *Desk) Queued(c *sock.Conn) time.Duration {
	d.accepted++
	if d.accepted%queuedEvery != 1 {
		return -1
	}
	return c.Queued()
}
