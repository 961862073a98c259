// Package loop is one shard of the proxy: a goroutine that waits for many descriptors at once and runs every callback
// of the connections it owns, so that nothing inside a shard needs a lock.
//
// The shard has an epoll instance of its own. Under load it waits in epoll_wait(2) itself, without telling Go's scheduler;
// idle, it leaves its processor to others and waits on Go's network poller. A blocking system call as the scheduler
// knows it would cost a thread hand-over on every wake-up.
package loop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"conduit.io/conduit/proxy/flow"

	"golang.org/x/sys/unix"
)

// ErrStopped is what Do returns, and what handlers' owners report, once the loop has ended.
var ErrStopped = errors.New("loop stopped")

const (
	bufferSize = 64 << 10
	maxEvents  = 256
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
	// Local is what the layer above keeps for all of its descriptors on this loop. If it is an io.Closer, it is closed at
	// the end.
	Local any

	epfd     int
	wakeR    int // eventfd
	gate     gate
	patience time.Duration
	keep     bool // the processor, even if there is no other
	evs      [maxEvents]unix.EpollEvent

	now      int64
	timers   timers
	handlers []slot
	soon     []Task
	spare    []Task
	flush    []Flusher
	busy     int
	stopping bool // Run is to return
	closing  bool // Run returns: no new descriptors
	buf      [bufferSize]byte
	scratch  [2][bufferSize]byte

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
	l := &Loop{epfd: epfd, wakeR: ev, done: make(chan struct{}), now: nanotime(), patience: patience}
	if err = unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, ev, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(ev)}); err == nil {
		err = l.gate.open(epfd)
	}
	if err != nil {
		unix.Close(epfd)
		unix.Close(ev)
		return nil, fmt.Errorf("set up loop: %w", err)
	}
	return l, nil
}

// Run serves until ctx is done or Stop is called. Then every handler still registered is told by Stopped. A panic in a
// callback is not recovered.
func (l *Loop) Run(ctx context.Context) {
	unhook := context.AfterFunc(ctx, l.Stop)
	defer unhook()
	runs(1)
	defer runs(-1)
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

// Scratch is one of two more buffers like it, for those who make something else of what was read (0) or is to be written (1).
func (l *Loop) Scratch(i int) []byte { return l.scratch[i][:] }

var base = time.Now()

func nanotime() int64 { return int64(time.Since(base)) }

// Now is the time at the start of the batch in nanoseconds; monotonic, and comparable between loops of one process.
func (l *Loop) Now() int64 { return l.now }

// Time is the time now, comparable with Now. It costs a reading of the clock.
func (l *Loop) Time() int64 { return nanotime() }

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
	if c, ok := l.Local.(io.Closer); ok {
		_ = c.Close()
	}
	l.release()
	close(l.done)
}

func (l *Loop) release() {
	l.gate.file.Close()
	unix.Close(l.epfd)
	unix.Close(l.wakeR)
}
