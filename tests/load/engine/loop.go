// Package engine is a single-threaded epoll loop with TCP connections and timers, for a load generator and a backend
// that must cost little beside what they measure: no goroutine per connection, one write for all that one read caused.
package engine

import (
	"container/heap"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Loop owns an epoll instance, its connections and its timers. Everything but Post, Stop and Now happens on the
// goroutine that calls Run.
type Loop struct {
	ep, wake int
	files    []file // by descriptor
	buf      []byte // what is being read
	dirty    []*Conn
	timers   timers
	stopping bool

	mu     sync.Mutex
	posted []func()
}

// file is what a descriptor is registered for.
type file interface{ event(events uint32) }

// New makes a loop. Run must be called to free what it holds.
func New() (*Loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &Loop{ep: ep, wake: wake, buf: make([]byte, 128<<10)}
	if err := l.add(wake, unix.EPOLLIN, waker{l}); err != nil {
		unix.Close(ep)
		unix.Close(wake)
		return nil, err
	}
	return l, nil
}

var base = time.Now()

// Now is the monotonic time in nanoseconds.
func Now() int64 { return int64(time.Since(base)) }

// Post runs f on the loop soon. Any goroutine may call it; after the loop has ended f never runs.
func (l *Loop) Post(f func()) {
	l.mu.Lock()
	l.posted = append(l.posted, f)
	l.mu.Unlock()
	one := [8]byte{7: 1}
	_, _ = unix.Write(l.wake, one[:])
}

// Stop makes Run return. Only the loop calls it.
func (l *Loop) Stop() { l.stopping = true }

type waker struct{ l *Loop }

func (w waker) event(uint32) {
	var b [8]byte
	_, _ = unix.Read(w.l.wake, b[:])
	w.l.mu.Lock()
	fs := w.l.posted
	w.l.posted = nil
	w.l.mu.Unlock()
	for _, f := range fs {
		f()
	}
}

// Run serves until Stop, then closes every connection and listener.
func (l *Loop) Run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Timers are to fire when they are due, not up to 50 µs later.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	defer l.close()
	events := make([]unix.EpollEvent, 256)
	for !l.stopping {
		n, err := l.wait(events)
		if err != nil {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for _, ev := range events[:n] {
			if f := l.files[ev.Fd]; f != nil {
				f.event(ev.Events)
				l.flush()
			}
		}
		l.expire()
		l.flush()
	}
	return nil
}

// wait blocks until something happens or the next timer is due. epoll_pwait2 because epoll_wait counts milliseconds.
func (l *Loop) wait(events []unix.EpollEvent) (int, error) {
	var ts *unix.Timespec
	if len(l.timers) > 0 {
		t := unix.NsecToTimespec(max(0, l.timers[0].at-Now()))
		ts = &t
	}
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.ep), uintptr(unsafe.Pointer(&events[0])),
		uintptr(len(events)), uintptr(unsafe.Pointer(ts)), 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, errno
}

func (l *Loop) flush() {
	for i := 0; i < len(l.dirty); i++ { // grows meanwhile
		c := l.dirty[i]
		c.dirty = false
		c.flush()
	}
	l.dirty = l.dirty[:0]
}

func (l *Loop) add(fd int, events uint32, f file) error {
	for len(l.files) <= fd {
		l.files = append(l.files, nil)
	}
	if err := unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	l.files[fd] = f
	return nil
}

func (l *Loop) close() {
	for fd, f := range l.files {
		switch f := f.(type) {
		case *Conn:
			f.Close()
		case *listener:
			unix.Close(fd)
		}
	}
	unix.Close(l.wake)
	unix.Close(l.ep)
}

// Timer is a function to be called at a time, again and again.
type Timer struct {
	f     func()
	at    int64
	index int // in the heap, -1 when not set
}

// NewTimer makes a timer that is not set. f runs on the loop.
func (l *Loop) NewTimer(f func()) *Timer { return &Timer{f: f, index: -1} }

// Set makes t fire once at the time at (see Now), instead of when it was set to.
func (l *Loop) Set(t *Timer, at int64) {
	t.at = at
	if t.index >= 0 {
		heap.Fix(&l.timers, t.index)
		return
	}
	heap.Push(&l.timers, t)
}

// Unset keeps t from firing.
func (l *Loop) Unset(t *Timer) {
	if t.index >= 0 {
		heap.Remove(&l.timers, t.index)
	}
}

// expire fires the timers that are due; those set meanwhile wait for the next round, so that none starves the sockets.
func (l *Loop) expire() {
	now := Now()
	for range len(l.timers) {
		if len(l.timers) == 0 || l.timers[0].at > now {
			return
		}
		heap.Pop(&l.timers).(*Timer).f()
	}
}

type timers []*Timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].at < h[j].at }
func (h timers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *timers) Push(x any) {
	t := x.(*Timer)
	t.index = len(*h)
	*h = append(*h, t)
}
func (h *timers) Pop() any {
	t := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	t.index = -1
	return t
}

// ErrEOF is why a connection ended that the peer closed in order.
var ErrEOF = errors.New("closed by the peer")
