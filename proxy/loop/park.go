package loop

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// patience is how long a loop with nothing to do stays in epoll_wait(2) itself, which it enters and leaves at
	// the least cost and delay. It holds its processor meanwhile (the P of Go's scheduler, not the machine's). The
	// scheduler's signals, which it sends again until they are heeded, interrupt the wait.
	patience = 10 * time.Millisecond
	// yieldEvery is how many turns without parking pass before other goroutines get the processor when there is but
	// one: raw system calls never hand it over, and handshakes and the admin server would starve.
	yieldEvery = 16
)

// spare reports whether Go's scheduler has more processors than there are loops.
var spare atomic.Bool

var running struct {
	sync.Mutex
	loops int
}

// KeepProcessor makes the loop stay in epoll_wait(2) also where Go's scheduler has no processor to spare. Goroutines that
// become ready meanwhile, other than by a call of Post, may wait for patience. It is called before Run.
func (l *Loop) KeepProcessor() { l.keep = true }

// runs counts loops that begin or end.
func runs(d int) {
	running.Lock()
	defer running.Unlock()
	running.loops += d
	spare.Store(running.loops < runtime.GOMAXPROCS(0))
}

// gate is where a loop waits when it has been idle for longer: an epoll instance, parked on Go's network poller, in
// which the loop's own one is registered (epoll(7) allows nesting). Only while the loop waits there is it armed: events
// that the loop sees itself are to wake nobody.
type gate struct {
	file  *os.File
	raw   syscall.RawConn
	fd    int
	inner int
	armed bool
	first bool               // the next call of wait comes before waiting, not after
	wait  func(uintptr) bool // for raw.Read
	until int64              // the deadline that is set, 0: none, -1: it has passed and must be set anew
}

func (g *gate) open(inner int) error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("create epoll: %w", err)
	}
	// Only a descriptor that is non-blocking when os.NewFile sees it is given to Go's poller.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return fmt.Errorf("set epoll non-blocking: %w", err)
	}
	g.file, g.fd, g.inner = os.NewFile(uintptr(fd), "epoll"), fd, inner
	g.wait = g.step
	if g.raw, err = g.file.SyscallConn(); err == nil {
		err = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, inner, &unix.EpollEvent{Events: unix.EPOLLONESHOT})
	}
	if err != nil {
		g.file.Close()
		return fmt.Errorf("set up epoll: %w", err)
	}
	return nil
}

// step arms the gate when it is first called in a raw.Read, which is after Go's poller has forgotten what it knew of the
// gate, so that no event falls between; when it is called again, there has been one.
func (g *gate) step(uintptr) bool {
	if g.armed { // it fires once, and must be emptied before it can fire again
		var ev [1]unix.EpollEvent
		_, _ = rawEpollWait(g.fd, ev[:], 0)
	}
	g.armed = g.first
	if !g.first {
		return true
	}
	g.first = false
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT}
	if err := unix.EpollCtl(g.fd, unix.EPOLL_CTL_MOD, g.inner, &ev); err != nil {
		panic(fmt.Sprintf("loop: arm epoll: %v", err)) // only a closed descriptor can do this: a bug
	}
	return false
}

// pass waits until the inner instance has an event, or until next, 0 for ever.
func (g *gate) pass(next int64) {
	// A deadline that is too early is left alone: it costs one idle wake-up, while most timers are stopped long
	// before they are due.
	if g.until != next && (g.until <= 0 || next != 0 && next < g.until) {
		var at time.Time
		if next != 0 {
			at = base.Add(time.Duration(next))
		}
		if err := g.file.SetReadDeadline(at); err != nil {
			panic(fmt.Sprintf("loop: set deadline: %v", err))
		}
		g.until = next
	}
	g.first = true
	err := g.raw.Read(g.wait)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		g.until = -1
	} else if err != nil {
		panic(fmt.Sprintf("loop: wait on epoll: %v", err))
	}
}

// rawEpollWait waits for at most ms milliseconds. A raw call: Go's scheduler is not told.
func rawEpollWait(fd int, evs []unix.EpollEvent, ms int) (int, syscall.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(&evs[0])), uintptr(len(evs)), uintptr(ms), 0, 0)
	return int(n), e
}

// poll gets the events there are into evs, and returns how many.
func (l *Loop) poll() int {
	if l.busy++; l.busy%yieldEvery == 0 && !spare.Load() {
		runtime.Gosched()
	}
	if n, e := rawEpollWait(l.epfd, l.evs[:], 0); e == 0 {
		return n
	}
	return 0
}

// park returns the number of events in evs, waiting for one, a post or a timer if nothing else is to be done.
func (l *Loop) park() int {
	if len(l.soon) > 0 || len(l.flush) > 0 {
		return l.poll()
	}
	next := l.timers.next()
	wait := int64(l.patience)
	if next != 0 && next-l.now < 10*wait {
		wait = min(wait, next-nanotime())
	}
	if wait <= 0 || !l.setParked() {
		return l.poll()
	}
	if !spare.Load() {
		if n := l.poll(); n > 0 || !l.keep {
			return l.leave(n, next)
		}
		runtime.Gosched() // whoever is ready runs first
	}
	n, e := rawEpollWait(l.epfd, l.evs[:], int((wait+999_999)/1e6))
	if n != 0 || e != 0 || wait < int64(l.patience) {
		return max(n, 0)
	}
	return l.leave(0, next)
}

// leave waits on Go's poller if there are no events, which n says, and returns how many there then are.
func (l *Loop) leave(n int, next int64) int {
	if n > 0 {
		return n
	}
	l.busy = 0
	l.gate.pass(next)
	n, _ = rawEpollWait(l.epfd, l.evs[:], 0)
	return max(n, 0)
}

// setParked makes the next Post wake the loop up; it reports false when there has been a Post.
func (l *Loop) setParked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parked = len(l.inbox) == 0
	return l.parked
}
