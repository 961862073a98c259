// Package loop is one shard of the proxy: a goroutine that waits for many descriptors at once and runs every callback
// of the connections it owns, so that nothing inside a shard needs a lock.
//
// The shard has an epoll instance of its own, which is itself parked on Go's network poller (one epoll inside another,
// epoll(7)). Blocking in epoll_wait instead would cost a thread hand-over on every wake-up.
package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"conduit.io/conduit/proxy/flow"

	"golang.org/x/sys/unix"
)

// ErrStopped is what Do returns, and what handlers' owners report, once the loop has ended.
var ErrStopped = errors.New("loop stopped")

const (
	bufferSize = 64 << 10
	maxEvents  = 256
	// yieldEvery is how many turns without parking pass before other goroutines get the processor: raw system calls
	// never hand it over, and with one processor a busy shard would starve handshakes and the admin server.
	yieldEvery = 16
	// flushRounds bounds how often flushing may cause more flushing before descriptors get their turn.
	flushRounds = 4
)

// Task is something to be done later on the loop. An interface instead of a func so that objects which are queued over
// and over need no closure.
type Task interface {
	Run()
}

// Flusher writes out what has been gathered during a batch.
type Flusher interface {
	Flush()
}

// Loop is a shard. All methods except Post, Do, Stop and Run must be called on its goroutine, that is from a callback.
type Loop struct {
	epoll *os.File
	raw   syscall.RawConn
	epfd  int
	wakeR int // eventfd
	poll  func(uintptr) bool
	n     int
	evs   [maxEvents]unix.EpollEvent

	now      int64
	armed    int64 // read deadline of epoll, 0: none, -1: it has passed and must be set anew
	timers   timers
	handlers []slot
	soon     []Task
	spare    []Task
	flush    []Flusher
	busy     int
	stopping bool // Run is to return
	closing  bool // Run returns: no new descriptors
	buf      [bufferSize]byte

	mu     sync.Mutex
	inbox  []func()
	ended  bool
	parked bool // the loop waits, or is about to: Post must wake it up
	done   chan struct{}
}

var _ flow.Clock = (*Loop)(nil)

// New makes a loop. Its descriptors are released when Run returns.
func New() (*Loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	ev, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	// Only a descriptor that is non-blocking when os.NewFile sees it is given to Go's poller.
	if err := unix.SetNonblock(epfd, true); err != nil {
		unix.Close(epfd)
		unix.Close(ev)
		return nil, fmt.Errorf("set epoll non-blocking: %w", err)
	}
	l := &Loop{epoll: os.NewFile(uintptr(epfd), "epoll"), epfd: epfd, wakeR: ev, done: make(chan struct{})}
	l.poll = func(uintptr) bool { l.n = l.wait(); return l.n > 0 }
	l.now = nanotime()
	if l.raw, err = l.epoll.SyscallConn(); err == nil {
		err = unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, ev, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(ev)})
	}
	if err != nil {
		l.release()
		return nil, fmt.Errorf("set up epoll: %w", err)
	}
	return l, nil
}

// Run serves until ctx is done or Stop is called. Then every handler still registered is told by Stopped. A panic in a
// callback is not recovered.
func (l *Loop) Run(ctx context.Context) {
	unhook := context.AfterFunc(ctx, l.Stop)
	defer unhook()
	for !l.stopping {
		l.turn(l.park())
	}
	l.finish()
}

// Stop makes Run return after the current batch. Any goroutine may call it, more than once.
func (l *Loop) Stop() { l.Post(func() { l.stopping = true }) }

// Done is closed when Run has ended.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Post runs f on the loop; calls from one goroutine keep their order. It reports false, and drops f, once the loop has
// ended. Any goroutine may call it, the loop's own as well.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return false
	}
	l.inbox = append(l.inbox, f)
	// Many posts to a parked loop cost one wake-up, and posts to a running one cost none: it looks at the inbox
	// after it has set parked. Under the lock, so that the eventfd cannot be closed meanwhile.
	if l.parked {
		l.parked = false
		one := [8]byte{1}
		unix.Write(l.wakeR, one[:])
	}
	l.mu.Unlock()
	return true
}

// Do runs f on the loop and waits until it has returned. On the loop's own goroutine it would wait for ever.
func (l *Loop) Do(f func()) error {
	ran := make(chan struct{})
	if !l.Post(func() { f(); close(ran) }) {
		return ErrStopped
	}
	<-ran
	return nil
}

// Soon runs t in this batch after the events that are known, or if called by a Task in the next one. Descriptors get
// their turn in between: a connection with bytes left unread queues itself here.
func (l *Loop) Soon(t Task) { l.soon = append(l.soon, t) }

// AtEnd calls f.Flush at the end of the batch. The caller sees to it that f is queued only once.
func (l *Loop) AtEnd(f Flusher) { l.flush = append(l.flush, f) }

// Buffer is the loop's one read buffer. Whoever fills it must be done with it before returning to the loop.
func (l *Loop) Buffer() []byte { return l.buf[:] }

var base = time.Now()

func nanotime() int64 { return int64(time.Since(base)) }

// Now is the time at the start of the batch in nanoseconds; monotonic, and comparable between loops of one process.
func (l *Loop) Now() int64 { return l.now }

// park returns the number of events in evs, waiting for one, a post or a timer if nothing else is to be done.
func (l *Loop) park() int {
	if n := l.wait(); n > 0 || len(l.soon) > 0 || len(l.flush) > 0 {
		l.busy++
		if l.busy%yieldEvery == 0 {
			runtime.Gosched()
		}
		return n
	}
	l.busy = 0
	if !l.arm() || !l.setParked() {
		return 0
	}
	l.n = 0
	err := l.raw.Read(l.poll)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.armed = -1
	} else if err != nil {
		panic(fmt.Sprintf("loop: wait on epoll: %v", err)) // only a closed descriptor can do this: a bug
	}
	return l.n
}

// setParked makes the next Post wake the loop up; it reports false when there has been a Post.
func (l *Loop) setParked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parked = len(l.inbox) == 0
	return l.parked
}

// arm sets the deadline of the wait; it reports false when a timer is due already. A deadline that is too early is
// left alone: it costs one idle wake-up, while most timers are stopped long before they are due.
func (l *Loop) arm() bool {
	next := l.timers.next()
	if next != 0 && next <= nanotime() {
		return false
	}
	if l.armed == next || (l.armed > 0 && (next == 0 || next > l.armed)) {
		return true
	}
	var at time.Time
	if next != 0 {
		at = base.Add(time.Duration(next))
	}
	if err := l.epoll.SetReadDeadline(at); err != nil {
		panic(fmt.Sprintf("loop: set deadline: %v", err))
	}
	l.armed = next
	return true
}

// turn is one batch.
func (l *Loop) turn(n int) {
	l.now = nanotime()
	l.drainInbox()
	l.timers.run(l.now)
	l.dispatch(n)
	if len(l.soon) > 0 {
		l.soon, l.spare = l.spare, l.soon
		for i, t := range l.spare {
			l.spare[i] = nil
			t.Run()
		}
		l.spare = trimmed(l.spare)
	}
	for range flushRounds {
		if len(l.flush) == 0 {
			break
		}
		l.runFlush()
	}
}

func (l *Loop) runFlush() {
	n := len(l.flush)
	for i := range n {
		l.flush[i].Flush()
	}
	m := copy(l.flush, l.flush[n:])
	clear(l.flush[m:])
	l.flush = l.flush[:m]
}

func (l *Loop) drainInbox() {
	l.mu.Lock()
	in := l.inbox
	l.inbox, l.parked = nil, false
	l.mu.Unlock()
	for _, f := range in {
		f()
	}
}

// trimmed empties a queue for reuse, giving back what a burst has made it grow to.
func trimmed(q []Task) []Task {
	if cap(q) > 1024 {
		return nil
	}
	return q[:0]
}

// finish tells everybody that the loop has ended, and releases its descriptors.
func (l *Loop) finish() {
	l.drainInbox()
	l.closing = true
	for fd := range l.handlers {
		if h := l.handlers[fd].h; h != nil {
			l.handlers[fd].h = nil
			h.Stopped()
		}
	}
	for len(l.soon) > 0 { // last callbacks that were put off
		q := l.soon
		l.soon = nil
		for _, t := range q {
			t.Run()
		}
	}
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.drainInbox() // nothing can follow
	l.release()
	close(l.done)
}

func (l *Loop) release() {
	l.epoll.Close()
	unix.Close(l.wakeR)
}
