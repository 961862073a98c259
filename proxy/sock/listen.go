package sock

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"time"

	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

const (
	// acceptBatch is how many connections one listener takes before others get their turn.
	acceptBatch = 16
	// acceptRest is how long a listener rests when descriptors have run out.
	acceptRest = 50 * time.Millisecond
	// acceptPatience is how many rests later waiting clients are refused: a clear end is better than a hang.
	acceptPatience = 20
)

// Listener accepts connections from a listening socket, as long as a quarter of the process's descriptors is free: what
// clients ask for needs some, too.
type Listener struct {
	// Short, if set, is called on the loop when the listener rests for want of descriptors: how often it has before, in
	// succession, and how many clients it has refused that waited in vain.
	Short func(rests, refused int)
	// Greedy, if set, is asked while more than half of the descriptors that clients get are in use: whether this listener's clients
	// have more of them than is fair. Those that come now wait, so that others find room.
	Greedy func() bool
	// Privileged listeners take the last descriptor.
	Privileged bool

	l       *loop.Loop
	fd      int
	reserve int // an open descriptor, to be given up for a moment when there is no other
	bound   int // clients get descriptors below it
	near    bool
	accept  func(*Conn)
	rest    flow.Timer
	rests   int
	inherit bool // accepted sockets have the listener's options
	closed  bool
}

// Listen accepts from the listening stream socket f, of which it keeps a duplicate: f stays the caller's. accept gets
// every connection, on the loop; it calls SetReceiver, StartTLS, Close or Abort, now or later. Call Listen on l's
// goroutine, and set the Listener's fields before returning to the loop. Several loops may listen on one socket.
func Listen(l *loop.Loop, f *os.File, accept func(*Conn)) (*Listener, error) {
	fd, err := dupFile(f)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || v == 0 {
		unix.Close(fd)
		return nil, fmt.Errorf("listen: %s is not a listening socket", f.Name())
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen: %w", err)
	}
	setOptions(fd)
	s := &Listener{l: l, fd: fd, accept: accept, reserve: openReserve()}
	s.bound = Descriptors() / 4 * 3
	// An MPTCP listener, which is what Go makes unless told otherwise, keeps them to itself.
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	s.inherit = err == nil && proto == unix.IPPROTO_TCP
	if err := l.WatchAccept(fd, (*acceptor)(s)); err != nil {
		s.release()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return s, nil
}

// Addr is the address that the socket is bound to; the zero AddrPort after Close.
func (s *Listener) Addr() netip.AddrPort {
	if s.closed {
		return netip.AddrPort{}
	}
	return sockName(s.fd, unix.SYS_GETSOCKNAME)
}

// Close delivers the connections that wait in the socket's queue, and accepts no more. The socket itself lives on as
// long as somebody else has a descriptor of it.
func (s *Listener) Close() {
	if s.closed {
		return
	}
	for s.take(1<<16) && !s.closed { // until EAGAIN; the queue's length is bounded by the backlog
	}
	s.release()
}

func (s *Listener) release() {
	if s.closed {
		return
	}
	s.closed = true
	if s.rest != nil {
		s.rest.Stop()
	}
	s.l.Unwatch(s.fd)
	unix.Close(s.fd)
	if s.reserve >= 0 {
		unix.Close(s.reserve)
	}
}

// take accepts up to n connections; it reports whether there may be more.
func (s *Listener) take(n int) bool {
	for ; n > 0 && !s.closed; n-- {
		if s.near && !s.room() {
			s.exhausted()
			return false
		}
		fd, remote, e := sysAccept(s.fd)
		switch e {
		case 0:
			s.rests = 0
			s.near = s.near || fd >= s.bound/2
			if !s.inherit {
				setOptions(fd)
			}
			if c, err := adopt(s.l, fd, remote); err == nil {
				s.accept(c)
			}
		case unix.EAGAIN:
			return false
		case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
			s.exhausted()
			return false
		default:
			// accept(2): errors of the new connection are passed on here; the next may be well. An error of
			// the listener itself is met again, at the latest when it is level-triggered again.
			if e != unix.ECONNABORTED && e != unix.EPROTO && e != unix.EPERM && e != unix.ENETDOWN && e != unix.EHOSTUNREACH &&
				e != unix.ENETUNREACH && e != unix.ENOPROTOOPT && e != unix.EHOSTDOWN && e != unix.ENONET && e != unix.EOPNOTSUPP {
				s.pause()
				return false
			}
		}
	}
	return true
}

// Descriptors is how many the process may have open.
func Descriptors() int {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil || r.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(r.Cur)
}

// room reports whether a descriptor is free that a client may have. The kernel gives the lowest one that is, so that it can be
// asked; but it is not while half of them have never been in use.
func (s *Listener) room() bool {
	if s.Privileged {
		return true
	}
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return fd < s.bound/2 || fd < s.bound && (s.Greedy == nil || !s.Greedy())
}

// exhausted handles the want of descriptors: clients wait in the queue for a while, then they are refused.
func (s *Listener) exhausted() {
	refused := 0
	if s.rests >= acceptPatience && s.reserve >= 0 {
		unix.Close(s.reserve)
		for ; refused < acceptBatch; refused++ {
			fd, _, e := sysAccept(s.fd)
			if e != 0 {
				break
			}
			resetClose(fd)
		}
		s.reserve = openReserve()
	}
	if s.Short != nil {
		s.Short(s.rests, refused)
	}
	s.rests++
	s.pause()
}

// pause stops watching: level-triggered, the loop would spin.
func (s *Listener) pause() {
	s.l.Unwatch(s.fd)
	if s.rest != nil { // Close has another look at the queue
		s.rest.Stop()
	}
	s.rest = s.l.After(acceptRest, func() {
		s.rest = nil
		if err := s.l.WatchAccept(s.fd, (*acceptor)(s)); err != nil {
			s.pause()
		}
	})
}

// openReserve gives -1 when there is none to be had; then clients simply wait.
func openReserve() int {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// acceptor is Listener as its loop sees it.
type acceptor Listener

// Ready implements loop.Handler.
func (a *acceptor) Ready(loop.Events) { (*Listener)(a).take(acceptBatch) }

// Stopped implements loop.Handler.
func (a *acceptor) Stopped() { (*Listener)(a).release() }
