package sock

import (
	"crypto/tls"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

// handshakeTimeout bounds a handshake from the connection on, the wait for its turn included.
const handshakeTimeout = 10 * time.Second

// handshake is a stage: crypto/tls runs in a goroutine of its own, on the same descriptor, and waits for the loop's word
// that something has changed. A server's begins only when the client has said what it wants, so that those who say
// nothing, or half of it, cost neither a goroutine nor a turn.
type handshake struct {
	c      *Conn
	done   func(error)
	timer  flow.Timer
	slots  *limiter
	begun  bool // it has a goroutine, or waits for its turn
	ending bool // it has none, and finish will be called: nobody may begin to use the descriptor
	result error

	wake chan struct{} // holds one signal
	idle atomic.Int64  // since when its goroutine waits for the peer, in Unix nanoseconds; 0 while it computes
	mu   sync.Mutex
	stop error // set: give up
}

// StartTLS makes c the server side of a TLS session by cfg, which should set DynamicRecordSizingDisabled. It is called
// before a receiver is set; done is called later, on the loop. After an error c closes by itself and calls nobody back.
// A connection that is closed meanwhile, or was already, ends with ErrAborted, and one that takes longer than 10 s with
// ErrTimeout.
func (c *Conn) StartTLS(cfg *tls.Config, done func(error)) {
	c.startTLS(cfg, false, handshakeTimeout, done)
}

func (c *Conn) startTLS(cfg *tls.Config, client bool, timeout time.Duration, done func(error)) {
	if c.dead || c.stage != nil || c.tls != nil {
		c.l.After(0, func() { done(ErrAborted) })
		return
	}
	h := &handshake{c: c, done: done, wake: make(chan struct{}, 1), slots: &serverSlots}
	s := &session{w: wire{c: c, hs: h}}
	c.LocalAddr()
	if client {
		h.slots = &clientSlots
		s.tc = tls.Client(&s.w, cfg)
	} else {
		s.tc = tls.Server(&s.w, cfg)
	}
	c.tls, c.stage = s, h
	h.timer = c.l.After(timeout, func() { h.abandon(ErrTimeout) })
	if client || c.canRead && h.asked() {
		h.begin()
	}
}

// ready implements stage.
func (h *handshake) ready(ev loop.Events) {
	if !h.begun && !h.ending && ev&(loop.In|loop.Hup) != 0 && (ev&loop.Hup != 0 || h.asked()) {
		h.begin()
	}
	h.signal()
}

// asked reports whether crypto/tls would get on: the client's first record is there as a whole, or it is none.
func (h *handshake) asked() bool {
	var head [5]byte // type, version, length (RFC 8446, 5.1)
	n, _, err := unix.Recvfrom(h.c.fd, head[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false
	case err != nil || n == 0 || head[0] != 0x16:
		return true
	case n < len(head):
		return false
	}
	size := len(head) + int(head[3])<<8 + int(head[4])
	there, err := unix.IoctlGetInt(h.c.fd, unix.SIOCINQ)
	return err != nil || there >= size || size > len(head)+maxHello
}

// maxHello is the longest record that carries a ClientHello (RFC 8446, 5.1); crypto/tls refuses others by their head.
const maxHello = 16 << 10

func (h *handshake) signal() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// cancel implements stage.
func (h *handshake) cancel() { h.abandon(ErrAborted) }

// stopped implements stage.
func (h *handshake) stopped() {
	if h.ending || !h.begun || h.slots.leaveQueue(h) {
		h.finish(ErrAborted)
		return
	}
	h.abandon(ErrAborted)
}

// begin gets the handshake its turn.
func (h *handshake) begin() {
	if h.begun = h.slots.enter(h); !h.begun {
		h.failSoon(ErrBusy)
	}
}

// failSoon ends a handshake that has no goroutine, not within the caller's call.
func (h *handshake) failSoon(err error) {
	h.ending = true
	h.c.l.After(0, func() { h.finish(err) })
}

// abandon ends the handshake early, on the loop.
func (h *handshake) abandon(err error) {
	if h.ending {
		return
	}
	if !h.begun || h.slots.leaveQueue(h) {
		h.failSoon(err)
		return
	}
	h.give(err) // its goroutine comes to an end, and then calls finish
}

// give makes the goroutine give up. Any goroutine may call it.
func (h *handshake) give(err error) {
	h.mu.Lock()
	if h.stop == nil {
		h.stop = err
	}
	h.mu.Unlock()
	h.signal()
}

// dropped ends a handshake that has waited and will not have its turn. Any goroutine may call it.
func (h *handshake) dropped() {
	if !h.c.l.Post(func() {
		if !h.ending {
			h.failSoon(ErrBusy)
		}
	}) {
		unix.Close(h.c.fd) // the loop has ended and forgotten us
	}
}

// run is the goroutine.
func (h *handshake) run() {
	gate <- struct{}{}
	err := h.given()
	if err == nil {
		err = h.c.tls.tc.Handshake()
	}
	<-gate
	h.slots.exit(h)
	h.result = err
	if !h.c.l.Post(func() { h.finish(h.result) }) {
		unix.Close(h.c.fd) // the loop has ended and forgotten us
	}
}

// finish is the end, on the loop. It runs once. What was abandoned stays so, even if the handshake had just succeeded:
// nobody would own the connection.
func (h *handshake) finish(err error) {
	c := h.c
	if c.stage != h {
		return
	}
	if stop := h.given(); stop != nil {
		err = stop
	}
	h.timer.Stop()
	c.stage, c.tls.w.hs = nil, nil
	if err == nil {
		c.tls.begin()
		h.done(nil)
		if h.slots == &serverSlots { // a client has them written into its next ticket
			c.tls.dropCertificates()
		}
		c.mark()
		c.soon()
		return
	}
	if !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrAborted) && !errors.Is(err, ErrBusy) {
		err = &HandshakeError{err}
	}
	c.tls = nil // no close_notify, and no more records
	if errors.Is(err, ErrAborted) || errors.Is(err, ErrBusy) {
		c.end(err, true)
	} else {
		c.Close() // the alert that was sent is not to be destroyed by a reset
	}
	h.done(err)
}

func (h *handshake) given() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stop
}

// await sleeps until the loop has seen a change.
func (h *handshake) await() error {
	h.idle.Store(time.Now().UnixNano())
	<-gate
	<-h.wake
	h.idle.Store(0)
	gate <- struct{}{}
	return h.given()
}

// read is wire.Read during the handshake.
func (h *handshake) read(p []byte) (int, error) {
	for {
		n, e := sysRead(h.c.fd, p)
		switch {
		case e == unix.EAGAIN:
			if err := h.await(); err != nil {
				return 0, err
			}
		case e != 0:
			return 0, cause(e)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// write is wire.Write during the handshake.
func (h *handshake) write(p []byte) (int, error) {
	for done := 0; ; {
		n, e := sysWrite(h.c.fd, p[done:])
		switch {
		case e == unix.EAGAIN:
			if err := h.await(); err != nil {
				return done, err
			}
		case e != 0:
			return done, cause(e)
		default:
			if done += n; done == len(p) {
				return done, nil
			}
		}
	}
}

// gate lets one handshake compute at a time: the program has one processor more than it has loops, and a flood of
// handshakes must not stand in the scheduler's queue before them.
var gate = make(chan struct{}, 1)
