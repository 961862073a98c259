package engine

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Handler is told what happens on a connection, on its loop.
type Handler interface {
	// Connected: a dialled connection is there.
	Connected()
	// Data takes what it can from the front of b and returns how much; the rest comes again, with more behind it.
	Data(b []byte) int
	// EOF: the peer will send nothing more. A handler that has nothing left to say closes.
	EOF()
	// Drained: what was written has left, and NotifyDrained had asked to be told.
	Drained()
	// Closed is the last call. It is not made for connections that the handler closed itself.
	Closed(err error)
}

// Conn is a TCP connection. Its output is sent when the event is over that caused it.
type Conn struct {
	loop    *Loop
	h       Handler
	fd      int
	in      []byte // read, but not yet taken
	out     []byte // to be written, from off
	off     int
	dirty   bool
	waiting bool // registered for EPOLLOUT
	dialled bool // not connected yet
	eof     bool
	paused  bool
	notify  bool
	last    bool   // nothing follows the output
	Read    uint64 // bytes received
	Wrote   uint64 // bytes sent
}

// Dial connects to a. The handler is told how it ends; Closed when it fails.
func (l *Loop) Dial(a netip.AddrPort, h Handler) (*Conn, error) {
	family, sa := sockaddr(a)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, fmt.Errorf("connect %s: %w", a, err)
	}
	c := &Conn{loop: l, h: h, fd: fd, dialled: true, waiting: true}
	if err := l.add(fd, unix.EPOLLIN|unix.EPOLLOUT, c); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, nil
}

func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if ip := a.Addr().Unmap(); ip.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

type listener struct {
	loop   *Loop
	fd     int
	accept func(*Conn) Handler
}

// Listen serves on what ln listens on, which the caller closes; accept gives a new connection its handler.
func (l *Loop) Listen(ln *net.TCPListener, accept func(*Conn) Handler) error {
	raw, err := ln.SyscallConn()
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fd := -1
	e := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
	if e != nil || err != nil {
		return fmt.Errorf("listen: %v %v", e, err)
	}
	if err := l.add(fd, unix.EPOLLIN, &listener{l, fd, accept}); err != nil {
		unix.Close(fd)
		return err
	}
	return nil
}

func (s *listener) event(uint32) {
	for range 64 {
		fd, _, err := unix.Accept4(s.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		c := &Conn{loop: s.loop, fd: fd}
		if err := s.loop.add(fd, unix.EPOLLIN, c); err != nil {
			unix.Close(fd)
			continue
		}
		c.h = s.accept(c)
	}
}

func (c *Conn) event(events uint32) {
	if c.dialled {
		if errno, _ := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); errno != 0 {
			c.fail(fmt.Errorf("connect: %w", syscall.Errno(errno)))
			return
		}
		if events&unix.EPOLLOUT == 0 {
			return
		}
		c.dialled = false
		c.interest(false)
		c.h.Connected()
	}
	if events&unix.EPOLLOUT != 0 && c.waiting {
		c.flush()
	}
	if c.Open() && (c.eof || c.paused) && events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		c.fail(ErrEOF)
	} else if c.Open() && events&^unix.EPOLLOUT != 0 {
		c.read()
	}
}

// read takes what has arrived, at most one buffer: what is left makes epoll report again.
func (c *Conn) read() {
	if c.eof || c.paused {
		return
	}
	buf := c.loop.buf
	kept := copy(buf, c.in)
	if kept == len(buf) { // a frame larger than the buffer: no peer of ours sends one
		c.fail(fmt.Errorf("read: %d bytes without sense", kept))
		return
	}
	n, err := unix.Read(c.fd, buf[kept:])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return
	case err != nil:
		c.fail(fmt.Errorf("read: %w", err))
		return
	case n == 0:
		c.eof = true
		c.interest(c.waiting)
		c.h.EOF()
		return
	}
	c.Read += uint64(n)
	c.deliver(buf[:kept+n])
}

func (c *Conn) deliver(b []byte) {
	took := c.h.Data(b)
	if !c.Open() {
		return
	}
	if rest := b[took:]; len(rest) > 0 {
		c.in = append(c.in[:0], rest...)
	} else {
		c.in = nil
	}
}

// Pause stops reading; Data is not called until Resume.
func (c *Conn) Pause() {
	if c.Open() && !c.paused {
		c.paused = true
		c.interest(c.waiting)
	}
}

// Resume goes on reading, and delivers what Data had left.
func (c *Conn) Resume() {
	if !c.Open() || !c.paused || c.last {
		return
	}
	c.paused = false
	c.interest(c.waiting)
	if len(c.in) > 0 {
		c.deliver(c.in)
	}
}

// NotifyDrained makes Drained be called, once, when all output has left.
func (c *Conn) NotifyDrained() { c.notify = true }

// Write appends to the output. b is copied.
func (c *Conn) Write(b []byte) { c.Commit(append(c.Output(), b...)) }

// Output is the output that has not left, to be appended to and given to Commit.
func (c *Conn) Output() []byte { return c.out }

// Commit takes the result of appending to Output.
func (c *Conn) Commit(out []byte) {
	c.out = out
	if !c.dirty && c.Open() {
		c.dirty = true
		c.loop.dirty = append(c.loop.dirty, c)
	}
}

// Backlog is how many bytes of output have not left.
func (c *Conn) Backlog() int { return len(c.out) - c.off }

func (c *Conn) flush() {
	if !c.Open() || c.dialled {
		return
	}
	for c.off < len(c.out) {
		n, err := unix.Write(c.fd, c.out[c.off:])
		if err == unix.EAGAIN {
			if !c.waiting {
				c.interest(true)
			}
			return
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			c.fail(fmt.Errorf("write: %w", err))
			return
		}
		c.off += n
		c.Wrote += uint64(n)
	}
	c.off = 0
	c.out = c.out[:0]
	if cap(c.out) > keepOutput {
		c.out = nil
	}
	if c.waiting {
		c.interest(false)
	}
	if c.last {
		c.fail(nil)
		return
	}
	if c.notify {
		c.notify = false
		c.h.Drained()
	}
}

// keepOutput is the largest output buffer that a connection keeps for its next output.
const keepOutput = 512 << 10

// interest registers for input, unless it has ended or is paused, and for room in the socket's buffer.
func (c *Conn) interest(out bool) {
	events := uint32(0)
	if !c.eof && !c.paused {
		events |= unix.EPOLLIN
	}
	if out {
		events |= unix.EPOLLOUT
	}
	c.waiting = out
	_ = unix.EpollCtl(c.loop.ep, unix.EPOLL_CTL_MOD, c.fd, &unix.EpollEvent{Events: events, Fd: int32(c.fd)})
}

// Open reports whether the connection has not been closed.
func (c *Conn) Open() bool { return c.fd >= 0 }

func (c *Conn) fail(err error) {
	if c.Open() {
		c.Close()
		c.h.Closed(err)
	}
}

// Close flushes what can be written at once and closes.
func (c *Conn) Close() {
	if !c.Open() {
		return
	}
	if !c.dialled && c.off < len(c.out) {
		_, _ = unix.Write(c.fd, c.out[c.off:])
	}
	c.loop.files[c.fd] = nil
	unix.Close(c.fd)
	c.fd, c.out, c.in = -1, nil, nil
}

// CloseFlushed closes when all output has left; Closed(nil) is called then. What comes meanwhile is not read.
func (c *Conn) CloseFlushed() {
	if c.Open() && !c.last {
		c.last = true
		c.Pause()
		c.Commit(c.out)
	}
}

// Reset closes with a TCP RST; what was written may be lost.
func (c *Conn) Reset() {
	if !c.Open() {
		return
	}
	_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	c.out, c.off = nil, 0
	c.Close()
}
