package loop

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Events says what has become possible on a descriptor.
type Events uint32

// The events.
const (
	In  Events = unix.EPOLLIN
	Out Events = unix.EPOLLOUT
	Pri Events = unix.EPOLLPRI
	Err Events = unix.EPOLLERR
	// Hup has a bit set when the peer has sent FIN (RDHUP), when both directions are shut, or on an error.
	Hup Events = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
)

// Handler serves one descriptor.
type Handler interface {
	// Ready is called when something has become possible. It is edge-triggered for Watch: it comes once for each
	// change, so the handler goes on until EAGAIN or remembers that it has not.
	Ready(ev Events)
	// Stopped is the last call: the loop has ended. The handler closes its descriptor.
	Stopped()
}

// slot is a descriptor's handler. The generation rides in the event: an event of a descriptor that was closed, and its
// number reused, within one batch is thereby not taken for one of the new descriptor.
type slot struct {
	h   Handler
	gen uint32
}

const (
	edge   = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET
	listen = unix.EPOLLIN | unix.EPOLLEXCLUSIVE
)

// Watch registers h for all events of fd, edge-triggered, once and for all. fd must be non-blocking.
func (l *Loop) Watch(fd int, h Handler) error { return l.register(fd, h, edge) }

// WatchAccept registers h for a listening socket, level-triggered: as long as connections wait, every batch calls
// Ready. Of several loops that watch the same listener, one or few are woken.
func (l *Loop) WatchAccept(fd int, h Handler) error { return l.register(fd, h, listen) }

func (l *Loop) register(fd int, h Handler, events uint32) error {
	if l.closing {
		return ErrStopped
	}
	for len(l.handlers) <= fd {
		l.handlers = append(l.handlers, slot{})
	}
	s := &l.handlers[fd]
	s.gen++
	ev := unix.EpollEvent{Events: events, Fd: int32(fd), Pad: int32(s.gen)}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	s.h = h
	return nil
}

// Forget ends the callbacks for fd. The caller closes fd at once; if it has been duplicated or will stay open, Unwatch
// is needed instead.
func (l *Loop) Forget(fd int) {
	if fd < len(l.handlers) {
		l.handlers[fd].h = nil
		l.handlers[fd].gen++
	}
}

// Unwatch ends the callbacks for fd, which may stay open.
func (l *Loop) Unwatch(fd int) {
	l.Forget(fd)
	// It fails only for a descriptor that is not registered, which is what is wanted.
	_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, fd, nil)
}

// Watched is how many descriptors have a handler.
func (l *Loop) Watched() int {
	n := 0
	for i := range l.handlers {
		if l.handlers[i].h != nil {
			n++
		}
	}
	return n
}

func (l *Loop) dispatch(n int) {
	for i := range n {
		ev := &l.evs[i]
		if int(ev.Fd) == l.wakeR {
			var b [8]byte
			unix.Read(l.wakeR, b[:])
			continue // the inbox has been, or in the next turn will be, emptied
		}
		s := l.handlers[ev.Fd]
		if s.h != nil && s.gen == uint32(ev.Pad) {
			s.h.Ready(Events(ev.Events))
		}
	}
}
