package sock

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// wantsData reports whether bytes would have a taker.
func (c *Conn) wantsData() bool {
	return !c.dead && !c.eof && (c.closing || (c.rcv != nil && !c.halted()))
}

// read delivers what the kernel has, up to this turn's share. It must not be called from within a call by the receiver.
func (c *Conn) read() {
	switch {
	case c.closing:
		c.discard()
	case c.tls != nil:
		c.readTLS()
	default:
		c.readPlain()
	}
}

func (c *Conn) readPlain() {
	buf := c.l.Buffer()[:plainBytes]
	for total := 0; c.canRead && c.wantsData() && !c.closing; {
		if total >= turnBytes {
			c.soon()
			return
		}
		if n, wait := c.splice(); n > 0 || wait {
			total += n / spliceCost
			continue
		}
		n, e := sysRead(c.fd, buf)
		switch {
		case e == unix.EAGAIN:
			c.canRead, c.hup = false, false
		case e != 0:
			c.readFailed(e)
		case n == 0:
			c.ended()
		default:
			c.note(n)
			// epoll(7): a short read of a stream has emptied it. Not so with a FIN behind it, which has had its
			// event already, or at an urgent byte, where a read always stops (tcp(7)).
			c.canRead = c.hup || n == len(buf)
			total += n
			c.rcv.Data(buf[:n])
		}
	}
}

// discard reads on after Close, so that the end of the connection is seen and is not a reset.
func (c *Conn) discard() {
	buf := c.l.Buffer()
	for total := 0; c.canRead && !c.eof && !c.dead && c.unwanted < lingerMax; {
		if total >= turnBytes {
			c.soon()
			return
		}
		n, e := sysRead(c.fd, buf)
		switch {
		case e == unix.EAGAIN:
			c.canRead, c.hup = false, false
		case e != 0:
			c.readFailed(e)
		case n == 0:
			c.eof = true
			c.settle()
		default:
			total += n
			c.unwanted += n
		}
	}
}

// readFailed ends the connection.
func (c *Conn) readFailed(e syscall.Errno) {
	err := cause(e)
	if c.err != nil {
		err = c.err
	}
	if c.closing && c.finSent {
		err = nil // nothing was left to lose
	}
	c.finish(err, false)
}

// ended handles the end of the peer's direction.
func (c *Conn) ended() {
	if c.err != nil { // a write had failed: after a reset the kernel says end of file to the reader
		c.finish(c.err, false)
		return
	}
	c.eof = true
	c.rcv.EOF()
	c.settle()
}

// settle ends the connection when both directions have, and calls Drained when it is due.
func (c *Conn) settle() {
	if c.dead {
		return
	}
	if c.eof && (c.finSent || c.err != nil) {
		c.finish(c.err, false)
		return
	}
	if c.over && !c.closing && c.Backlog() <= flowLow {
		c.over = false
		if c.rcv != nil {
			c.rcv.Drained()
		}
	}
}
