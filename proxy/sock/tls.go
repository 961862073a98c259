package sock

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// again is what the wire tells crypto/tls when the kernel has nothing: an error with Temporary() true leaves a
// tls.Conn usable, and the record that it has begun to read is kept (readRecordOrCCS in crypto/tls).
type again struct{}

func (again) Error() string   { return "no data yet" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

var errAgain net.Error = again{}

// maxCipher bounds the records that wait for the kernel.
const maxCipher = 4 << 20

// session is a Conn's TLS: crypto/tls over the same descriptor.
type session struct {
	tc       *tls.Conn
	w        wire
	lent     *[lentSize]byte // crypto/tls reads records into it for the time being
	plain    queue           // not yet encrypted: the kernel takes nothing at present, or the batch is not over
	notified bool            // close_notify was written
}

// seal encrypts the next piece; it reports false when there was nothing.
func (s *session) seal(c *Conn) bool {
	if k := s.plain.head; k != nil {
		n := k.w - k.r
		s.encrypt(c, k.b[k.r:k.w], k.next != nil)
		if s.plain.head == k { // it is not when writing failed
			s.plain.n -= n
			s.plain.pop()
		}
		return true
	}
	if c.fin && !s.notified {
		s.notified = true
		if err := s.tc.CloseWrite(); err != nil && c.err == nil {
			c.writeFailed(err)
		}
		return true
	}
	return false
}

// encrypt makes records of p, and writes or queues them; more: others follow at once.
func (s *session) encrypt(c *Conn, p []byte, more bool) {
	s.w.left = (len(p) + maxPlain - 1) / maxPlain
	if more {
		s.w.left++
	}
	if _, err := s.tc.Write(p); err != nil && c.err == nil {
		c.writeFailed(err)
	}
}

// release gives back the buffers of a connection that has ended.
func (s *session) release() {
	s.plain.reset()
	if s.lent != nil {
		s.raw().Reset()
		s.takeBack()
	}
}

// readTLS is readPlain for a session.
func (c *Conn) readTLS() {
	s := c.tls
	buf := c.l.Buffer()
	s.lend()
	for total := 0; c.wantsData() && !c.closing; {
		if errors.Is(c.err, ErrStalled) {
			c.finish(ErrStalled, true)
			break
		}
		if total >= turnBytes {
			c.soon()
			break
		}
		n, err := s.decrypt(buf)
		if n > 0 {
			total += max(n, recordCost)
			c.rcv.Data(buf[:n])
		}
		switch {
		case errors.Is(err, errAgain):
			s.takeBack()
			return
		case err != nil && n == 0: // beside bytes it comes again
			c.readTLSFailed(err)
		}
	}
	s.takeBack()
}

// decrypt fills buf with the records that are there. It takes whole ones only, so that nothing decrypted stays behind
// in memory that is only lent.
func (s *session) decrypt(buf []byte) (int, error) {
	n := 0
	for len(buf)-n >= maxPlain {
		k, err := s.tc.Read(buf[n:])
		n += k
		if err != nil || k == 0 {
			return n, err
		}
		if s.empty() {
			return n, errAgain
		}
	}
	return n, nil
}

func (c *Conn) readTLSFailed(err error) {
	w := &c.tls.w
	switch {
	case w.err != 0:
		c.readFailed(w.err)
	case w.eof && c.err != nil:
		c.finish(c.err, false)
	case w.eof:
		c.finish(errTruncated, false)
	case errors.Is(err, io.EOF):
		c.ended()
	default:
		c.pushOut() // the alert that says what is wrong
		c.finish(err, false)
	}
}

// wire is the net.Conn below crypto/tls: blocking, for a handshake's own goroutine, while hs is set; from then on it
// belongs to the loop and never blocks.
type wire struct {
	c    *Conn
	hs   *handshake
	left int        // records that crypto/tls is about to write, the next one included
	eof  bool       // crypto/tls has met FIN while it wanted more
	err  unix.Errno // crypto/tls has met this error
}

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	if w.hs != nil {
		return w.hs.read(p)
	}
	c := w.c
	if !c.canRead {
		return 0, errAgain
	}
	n, e := sysRead(c.fd, p)
	switch {
	case e == unix.EAGAIN:
		c.canRead, c.hup = false, false
		return 0, errAgain
	case e != 0:
		w.err = e
		return 0, e
	case n == 0:
		w.eof = true
		return 0, io.EOF
	}
	c.canRead = c.hup || n == len(p)
	return n, nil
}

// Write implements net.Conn. In the loop it takes everything: what the kernel does not, is queued.
func (w *wire) Write(p []byte) (int, error) {
	if w.hs != nil {
		return w.hs.write(p)
	}
	c, rest := w.c, p
	if c.err != nil || c.dead {
		return 0, errors.New("connection has failed")
	}
	if c.out.n > maxCipher {
		// Not our receiver's doing, which is held back by the backlog: a peer that takes nothing and goes on
		// asking for answers that crypto/tls gives by itself (KeyUpdate, RFC 8446, 4.6.3).
		c.writeFailed(ErrStalled)
		return 0, ErrStalled
	}
	w.left--
	flags := 0
	if w.left > 0 {
		flags = unix.MSG_MORE
	}
	for c.out.n == 0 && !c.blocked && len(rest) > 0 {
		n, e := sysSend(c.fd, rest, flags)
		switch e {
		case 0:
			rest = rest[n:]
			if c.closing {
				c.wait(flushTimeout)
			}
		case unix.EAGAIN:
			c.blocked = true
		default:
			c.writeFailed(e)
			return 0, e
		}
	}
	if len(rest) > 0 {
		c.out.append(rest)
		c.mark()
	}
	return len(p), nil
}

// Close implements net.Conn; the Conn closes the descriptor itself.
func (w *wire) Close() error { return nil }

// LocalAddr implements net.Conn.
func (w *wire) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(w.c.local) }

// RemoteAddr implements net.Conn. crypto/tls keys a client's sessions by it.
func (w *wire) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(w.c.remote) }

// SetDeadline implements net.Conn; the loop's timers do the work.
func (w *wire) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (w *wire) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn; crypto/tls calls it around close_notify.
func (w *wire) SetWriteDeadline(time.Time) error { return nil }
