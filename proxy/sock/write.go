package sock

import (
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/sys/unix"
)

const flowLow = flow.LowWater

// Write implements flow.Conn.
func (c *Conn) Write(p []byte) {
	q := &c.out
	if c.tls != nil {
		q = &c.tls.plain
	}
	// The common case: something small behind something small, to be written at the end of the batch.
	if k := q.tail; k != nil && c.dirty && !c.fin && len(p) <= len(k.b)-k.w && c.Backlog()+len(p) < flushAt {
		k.w += copy(k.b[k.w:], p)
		q.n += len(p)
		return
	}
	if len(p) == 0 || c.fin || c.dead || c.err != nil {
		return
	}
	if c.stage == nil && !c.blocked && c.Backlog() == 0 && len(p) >= direct {
		p = c.writeDirect(p)
		if c.err != nil || len(p) == 0 && c.out.n == 0 {
			return
		}
	}
	q.append(p)
	if c.stage == nil && !c.blocked && c.Backlog() >= flushAt {
		c.push()
	}
	if c.Backlog() > flow.HighWater {
		c.over = true
	}
	c.mark()
}

// writeDirect writes from the caller's own memory; it returns what is to be queued.
func (c *Conn) writeDirect(p []byte) []byte {
	if c.tls != nil {
		return c.tls.sealDirect(c, p)
	}
	n, e := sysWrite(c.fd, p)
	switch e {
	case 0:
		return p[n:]
	case unix.EAGAIN:
		c.blocked = true
	default:
		c.writeFailed(e)
	}
	return p
}

// Backlog implements flow.Conn.
func (c *Conn) Backlog() int {
	n := c.out.n
	if c.tls != nil {
		n += c.tls.plain.n
	}
	if c.pipe != nil {
		n += c.pipe.n
	}
	return n
}

// CloseWrite implements flow.Conn.
func (c *Conn) CloseWrite() {
	if !c.fin && !c.dead {
		c.fin = true
		c.mark()
	}
}

// push writes what the kernel takes, and the FIN behind it. It calls nobody back.
func (c *Conn) push() {
	for !c.dead && c.err == nil {
		c.pushOut()
		if c.blocked || c.err != nil || c.tls == nil || !c.tls.seal(c) {
			break
		}
	}
	if c.fin && !c.finSent && !c.dead && c.err == nil && c.Backlog() == 0 && (c.tls == nil || c.tls.notified) {
		c.sendFin()
	}
}

// sendFin shuts our direction. A connection of which nothing more is wanted is closed by settle instead, which says the
// same to the peer.
func (c *Conn) sendFin() {
	c.finSent = true
	if c.closing && c.eof {
		return
	}
	// An error means that the peer has reset the connection: reading will tell.
	_ = unix.Shutdown(c.fd, unix.SHUT_WR)
	if c.closing {
		c.wait(lingerTimeout)
	}
}

// pushOut gives the queue to the kernel.
func (c *Conn) pushOut() {
	if c.pipe != nil && !c.blocked {
		c.drainPipe()
	}
	var v [maxIovecs]unix.Iovec
	for c.pipe == nil && c.out.n > 0 && !c.blocked && c.err == nil {
		k := c.out.head
		var n int
		var e unix.Errno
		if k.next == nil {
			n, e = sysWrite(c.fd, k.b[k.r:k.w])
		} else {
			n, e = sysWritev(c.fd, c.out.iovecs(&v))
		}
		switch e {
		case 0:
			c.out.skip(n)
			if c.closing {
				c.wait(flushTimeout) // it does take something
			}
		case unix.EAGAIN:
			c.blocked = true
		default:
			c.writeFailed(e)
		}
	}
}

// writeFailed notes that nothing can be written any more. What the peer sent before may be worth reading (a response
// that came before the whole request was sent), so the end comes when reading meets it.
func (c *Conn) writeFailed(err error) {
	c.err = cause(err)
	c.out.reset()
	c.dropPipe()
	if c.tls != nil {
		c.tls.plain.reset()
	}
	c.canRead, c.hup = true, true
	c.mark()
	c.soon()
}
