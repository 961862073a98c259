package sock

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
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

const (
	cipherSize = 32 << 10
	// maxCipher bounds the records that wait for the kernel.
	maxCipher = 4 << 20
)

// cipherPool holds the buffers into which ciphertext is read. A connection keeps one only while it has bytes in it.
var cipherPool = sync.Pool{New: func() any { return new([cipherSize]byte) }}

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
		s.encrypt(c, k.b[k.r:k.w])
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

// encrypt makes records of p, and writes or queues them.
func (s *session) encrypt(c *Conn, p []byte) {
	if _, err := s.tc.Write(p); err != nil && c.err == nil {
		c.writeFailed(err)
	}
}

// release gives back the buffers of a connection that has ended.
func (s *session) release() {
	s.plain.reset()
	s.w.pend = nil
	s.w.idle()
	s.takeBack()
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
		n, err := s.tc.Read(buf)
		if n > 0 {
			total += n
			c.rcv.Data(buf[:n])
			continue // an error beside the bytes comes again
		}
		if err == nil {
			continue
		}
		if errors.Is(err, errAgain) {
			break
		}
		c.readTLSFailed(err)
	}
	s.w.idle()
	s.takeBack()
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
	buf  *[cipherSize]byte
	pend []byte     // of buf, not yet given to crypto/tls
	eof  bool       // crypto/tls has met FIN while it wanted more
	err  unix.Errno // crypto/tls has met this error
}

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	if w.hs != nil {
		return w.hs.read(p)
	}
	if len(w.pend) == 0 {
		if err := w.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.pend)
	w.pend = w.pend[n:]
	return n, nil
}

func (w *wire) fill() error {
	c := w.c
	if !c.canRead {
		return errAgain
	}
	if w.buf == nil {
		w.buf = cipherPool.Get().(*[cipherSize]byte)
	}
	n, e := sysRead(c.fd, w.buf[:])
	switch {
	case e == unix.EAGAIN:
		c.canRead, c.hup = false, false
		return errAgain
	case e != 0:
		w.err = e
		return e
	case n == 0:
		w.eof = true
		return io.EOF
	}
	c.canRead = c.hup || n == len(w.buf)
	w.pend = w.buf[:n]
	return nil
}

// idle gives the buffer back if nothing is in it.
func (w *wire) idle() {
	if len(w.pend) == 0 && w.buf != nil {
		cipherPool.Put(w.buf)
		w.buf, w.pend = nil, nil
	}
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
	for c.out.n == 0 && !c.blocked && len(rest) > 0 {
		n, e := sysWrite(c.fd, rest)
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
