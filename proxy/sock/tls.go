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
	plain    queue // not yet encrypted: the kernel takes nothing at present, or the batch is not over
	kept     []byte
	full     *[maxRecord]byte // the memory of kept, if it is of full size
	ours     bool             // application data is opened and sealed in record.go
	notified bool             // close_notify was written
	records  int              // how many there were of application data, in both directions
	worn     func()           // to be called after wornRecords
}

// wornRecords is how many records the keys of a session should have protected at most, when the connection is to be
// replaced. The bound of RFC 8446, 5.5, for AES-GCM is 2^24.5 full ones; crypto/tls counts none and never sends a
// KeyUpdate. What is left is for the streams that are under way.
const wornRecords = 1 << 22

// OnWorn has f called later, once, on the loop, when c's keys have protected so much that no new stream should begin on
// it: 64 GiB in full records. It is not called without TLS, nor after the connection has ended.
func (c *Conn) OnWorn(f func()) {
	if c.tls != nil {
		c.tls.worn = f
		c.tls.wear(c, 0)
	}
}

// wear counts records.
func (s *session) wear(c *Conn, n int) {
	s.records += n
	if s.worn != nil && s.records >= wornRecords {
		f := s.worn
		s.worn = nil
		c.l.After(0, func() {
			if !c.dead {
				f()
			}
		})
	}
}

// seal encrypts the next piece; it reports false when there was nothing.
func (s *session) seal(c *Conn) bool {
	if s.plain.n > 0 {
		s.sealPlain(c)
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

// sealPlain encrypts a piece of the queue, as much as fits the buffer.
func (s *session) sealPlain(c *Conn) {
	w, ok := s.sealing(c)
	if !ok {
		k := s.plain.head
		n := k.w - k.r
		s.encrypt(c, k.b[k.r:k.w])
		if s.plain.head == k { // it is not when writing failed
			s.plain.skip(n)
		}
		return
	}
	for s.plain.n > 0 && w.room() > 0 {
		n := min(s.plain.n, w.room())
		body := w.head(n)
		w.out = s.plain.take(w.out, n)
		w.seal(body)
		s.wear(c, 1)
	}
	_ = c.emit(w.out) // noted
}

// sealDirect encrypts and writes p; it returns what the kernel does not take at present.
func (s *session) sealDirect(c *Conn, p []byte) []byte {
	w, ok := s.sealing(c)
	if !ok {
		s.encrypt(c, p)
		return nil
	}
	for len(p) > 0 && !c.blocked && c.err == nil {
		for w.out = w.out[:0]; len(p) > 0 && w.room() > 0; {
			n := min(len(p), w.room())
			body := w.head(n)
			w.out = append(w.out, p[:n]...)
			w.seal(body)
			s.wear(c, 1)
			p = p[n:]
		}
		_ = c.emit(w.out) // noted
	}
	return p
}

// encrypt has crypto/tls make records of p, and write or queue them.
func (s *session) encrypt(c *Conn, p []byte) {
	s.wear(c, (len(p)+maxPlain-1)/maxPlain)
	if _, err := s.tc.Write(p); err != nil && c.err == nil {
		c.writeFailed(err)
	}
}

// release gives back the buffers of a connection that has ended.
func (s *session) release() {
	s.plain.reset()
	s.forget()
}

// readTLS is readPlain for a session.
func (c *Conn) readTLS() {
	s := c.tls
	if !s.ours {
		c.readTheirs()
		return
	}
	in, buf := c.l.Scratch(0), c.l.Buffer()
	p, owned := s.kept, true // p is what has been read and not opened, in the connection's own memory or the loop's
	for total := 0; c.wantsData() && !c.closing; {
		if errors.Is(c.err, ErrStalled) {
			c.finish(ErrStalled, true)
			break
		}
		if total >= turnBytes {
			c.soon()
			break
		}
		n, used, cost := s.open(buf, p, turnBytes-total)
		p = p[used:]
		var err error
		switch {
		case n > 0:
			total += cost
		case s.wanted(p):
			n, used, err = s.theirs(buf, p)
			s.wear(c, 1)
			total += max(n, recordCost)
			p = p[:used]
		case !c.canRead:
			s.save(p, owned)
			return
		case total >= turnBytes/2: // another read may bring more than what is left of the turn
			c.soon()
			s.save(p, owned)
			return
		default:
			n = copy(in, p)
			n += c.readCipher(in[n:])
			p, owned, n = in[:n], false, 0
		}
		if n > 0 {
			c.rcv.Data(buf[:n]) // an error beside the bytes comes again
		} else if err != nil && !errors.Is(err, errAgain) {
			c.readTLSFailed(err)
		}
	}
	s.save(p, owned)
}

// readCipher reads once; the end of the connection is dealt with.
func (c *Conn) readCipher(p []byte) int {
	n, e := sysRead(c.fd, p)
	switch {
	case e == unix.EAGAIN:
		c.canRead, c.hup = false, false
		return 0
	case e != 0:
		c.readFailed(e)
		return 0
	case n == 0:
		c.cutOff()
		return 0
	}
	c.canRead = c.hup || n == len(p)
	return n
}

// cutOff ends a connection on which FIN came without close_notify.
func (c *Conn) cutOff() {
	err := c.err
	if err == nil {
		err = errTruncated
	}
	c.finish(err, false)
}

// readTheirs is readTLS with crypto/tls opening all records.
func (c *Conn) readTheirs() {
	buf := c.l.Buffer()
	for total := 0; c.wantsData() && !c.closing; {
		if errors.Is(c.err, ErrStalled) {
			c.finish(ErrStalled, true)
			return
		}
		if total >= turnBytes {
			c.soon()
			return
		}
		n, err := c.tls.tc.Read(buf)
		switch {
		case n > 0:
			c.tls.wear(c, 1)
			total += max(n, recordCost)
			c.rcv.Data(buf[:n]) // an error beside the bytes comes again
		case errors.Is(err, errAgain):
			return
		case err != nil:
			c.readTLSFailed(err)
		}
	}
}

func (c *Conn) readTLSFailed(err error) {
	w := &c.tls.w
	switch {
	case w.err != 0:
		c.readFailed(w.err)
	case w.eof:
		c.cutOff()
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
	c   *Conn
	hs  *handshake
	eof bool       // crypto/tls has met FIN while it wanted more
	err unix.Errno // crypto/tls has met this error
}

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	if w.hs != nil {
		return w.hs.read(p)
	}
	c := w.c
	if !c.canRead || c.tls.ours { // we have read for crypto/tls
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
	c := w.c
	if c.err != nil || c.dead {
		return 0, errors.New("connection has failed")
	}
	if c.out.n > maxCipher {
		// Not our receiver's doing, which is held back by the backlog: a peer that takes nothing and goes on
		// asking for answers that crypto/tls gives by itself (KeyUpdate, RFC 8446, 4.6.3).
		c.writeFailed(ErrStalled)
		return 0, ErrStalled
	}
	if err := c.emit(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// emit writes records, and queues what the kernel does not take. An error has been noted when it returns.
func (c *Conn) emit(p []byte) error {
	for c.out.n == 0 && !c.blocked && len(p) > 0 {
		n, e := sysWrite(c.fd, p)
		switch e {
		case 0:
			p = p[n:]
			if c.closing {
				c.wait(flushTimeout)
			}
		case unix.EAGAIN:
			c.blocked = true
		default:
			c.writeFailed(e)
			return e
		}
	}
	if len(p) > 0 {
		c.out.append(p)
		c.mark()
	}
	return nil
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
