package loop

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/tests/leak"

	"golang.org/x/sys/unix"
)

// TestMain fails when a test leaves a descriptor or a goroutine behind.
func TestMain(m *testing.M) {
	os.Exit(leak.Main(m))
}

func start(t testing.TB) *Loop {
	t.Helper()
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go l.Run(ctx)
	t.Cleanup(func() {
		cancel()
		<-l.Done()
	})
	return l
}

func recv[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came within 10 s")
		panic("unreachable")
	}
}

func TestPostFromManyGoroutines(t *testing.T) {
	l := start(t)
	const posters, each = 16, 5000
	got := make([][]int, posters)
	var wg sync.WaitGroup
	for p := range posters {
		wg.Go(func() {
			for i := range each {
				if !l.Post(func() { got[p] = append(got[p], i) }) {
					t.Error("Post refused while the loop runs")
				}
			}
		})
	}
	wg.Wait()
	if err := l.Do(func() {}); err != nil {
		t.Fatal(err)
	}
	for p := range got {
		if len(got[p]) != each || !slices.IsSorted(got[p]) {
			t.Errorf("poster %d: %d of %d calls, in order: %v", p, len(got[p]), each, slices.IsSorted(got[p]))
		}
	}
}

func TestPostsShareOneWakeUp(t *testing.T) {
	l := start(t)
	hold, held := make(chan struct{}), make(chan struct{})
	l.Post(func() { close(held); <-hold })
	<-held
	var b [8]byte
	_, _ = unix.Read(l.wakeR, b[:]) // the loop may have been parked, and woken by this post
	n := 0
	for range 1000 {
		l.Post(func() { n++ })
	}
	if _, err := unix.Read(l.wakeR, b[:]); err != unix.EAGAIN {
		t.Errorf("posts to a running loop wrote to its eventfd: read = %v, want EAGAIN", err)
	}
	close(hold)
	if err := l.Do(func() {}); err != nil || n != 1000 {
		t.Errorf("ran %d of 1000 posts, %v", n, err)
	}
}

func TestTimersRunInOrder(t *testing.T) {
	l := start(t)
	const n = 500
	done := make(chan []int, 1)
	_ = l.Do(func() {
		var order []int
		due := make([]time.Duration, n)
		for i := range n {
			due[i] = time.Duration(rand.IntN(200)) * 100 * time.Microsecond
		}
		all := make([]flow.Timer, n)
		for i := range n {
			all[i] = l.After(due[i], func() { order = append(order, i) })
		}
		for _, i := range rand.Perm(n) {
			if i%3 == 0 {
				all[i].Stop()
				all[i].Stop()
			}
		}
		l.After(30*time.Millisecond, func() {
			for k := 1; k < len(order); k++ {
				a, b := order[k-1], order[k]
				if due[a] > due[b] || (due[a] == due[b] && a > b) {
					t.Errorf("timer %d (%v) ran before %d (%v)", a, due[a], b, due[b])
				}
			}
			done <- order
		})
	})
	order := recv(t, done)
	if want := n - (n+2)/3; len(order) != want {
		t.Errorf("%d timers ran, want %d", len(order), want)
	}
	for _, i := range order {
		if i%3 == 0 {
			t.Errorf("timer %d ran although it was stopped", i)
		}
	}
}

// TestTimerHeap stops timers anywhere in the heap, and looks whether the rest still come in order.
func TestTimerHeap(t *testing.T) {
	for range 2000 {
		l := &Loop{}
		var all []flow.Timer
		var due, got []time.Duration
		for range 40 {
			d := time.Duration(rand.IntN(1000))
			all = append(all, l.After(d, func() { got = append(got, d) }))
			due = append(due, d)
		}
		for range 20 {
			i := rand.IntN(len(all))
			all[i].Stop()
			all, due = slices.Delete(all, i, i+1), slices.Delete(due, i, i+1)
		}
		l.timers.run(1000)
		if slices.Sort(due); !slices.Equal(got, due) {
			t.Fatalf("timers ran at %v, want %v", got, due)
		}
	}
}

func TestTimerDoesNotRunEarly(t *testing.T) {
	l := start(t)
	const d = 20 * time.Millisecond
	done := make(chan time.Duration, 1)
	begin := time.Now()
	_ = l.Do(func() {
		l.After(time.Hour, func() {}).Stop() // leaves a deadline behind that is too late
		l.After(time.Millisecond, func() {}).Stop()
		now := l.Now()
		l.After(d, func() { done <- time.Duration(l.Now() - now) })
	})
	if got := recv(t, done); got < d || time.Since(begin) < d/2 {
		t.Errorf("timer of %v ran after %v", d, got)
	}
}

func TestTimerOfNoDelayLetsDescriptorsIn(t *testing.T) {
	l := start(t)
	a, b := pair(t)
	seen := make(chan struct{})
	_ = l.Do(func() {
		h := &handler{ready: func(ev Events) {
			if ev&In != 0 {
				close(seen)
				l.Unwatch(a)
			}
		}}
		if err := l.Watch(a, h); err != nil {
			t.Error(err)
		}
		var again func()
		again = func() {
			select {
			case <-seen:
			default:
				l.After(0, again)
			}
		}
		again()
	})
	if _, err := unix.Write(b, []byte("x")); err != nil {
		t.Fatal(err)
	}
	recv(t, seen)
}

type handler struct {
	ready   func(Events)
	stopped func()
}

func (h *handler) Ready(ev Events) {
	if h.ready != nil {
		h.ready(ev)
	}
}

func (h *handler) Stopped() {
	if h.stopped != nil {
		h.stopped()
	}
}

func pair(t *testing.T) (int, int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return p[0], p[1]
}

// TestReusedDescriptor closes, in the handler of one event, a descriptor whose event is in the same batch, and puts
// another under the same number: the event must not reach it.
func TestReusedDescriptor(t *testing.T) {
	l := start(t)
	var ends, peers [2]int
	for i := range ends {
		ends[i], peers[i] = pair(t)
	}
	fresh, _ := pair(t)
	var stale, swapped bool
	swap := func(victim int) {
		swapped = true
		l.Forget(victim)
		if err := unix.Dup3(fresh, victim, unix.O_CLOEXEC); err != nil {
			t.Error(err)
		}
		if err := l.Watch(victim, &handler{ready: func(ev Events) { stale = stale || ev&In != 0 }}); err != nil {
			t.Error(err)
		}
	}
	_ = l.Do(func() {
		for i := range ends {
			h := &handler{ready: func(ev Events) {
				if ev&In != 0 && !swapped {
					swap(ends[1-i])
				}
			}}
			if err := l.Watch(ends[i], h); err != nil {
				t.Error(err)
			}
		}
	})
	_ = l.Do(func() { // both become readable while the loop is here: one batch has both events
		for _, p := range peers {
			if _, err := unix.Write(p, []byte("x")); err != nil {
				t.Error(err)
			}
		}
	})
	for range 3 {
		_ = l.Do(func() {})
	}
	_ = l.Do(func() {
		if !swapped || stale {
			t.Errorf("swapped %v, stale event delivered %v", swapped, stale)
		}
	})
}

// counter requeues itself n times.
type counter struct {
	l    *Loop
	n    int
	done chan struct{}
}

func (c *counter) Run() {
	if c.n--; c.n == 0 {
		close(c.done)
		return
	}
	c.l.Soon(c)
}

type flusher struct{ n int }

func (f *flusher) Flush() { f.n++ }

func TestSoonAndFlush(t *testing.T) {
	l := start(t)
	c := &counter{l: l, n: 10_000, done: make(chan struct{})}
	f := &flusher{}
	_ = l.Do(func() {
		l.Soon(c)
		l.AtEnd(f)
		if f.n != 0 {
			t.Error("flushed before the end of the batch")
		}
	})
	recv(t, c.done)
	_ = l.Do(func() {
		if f.n != 1 {
			t.Errorf("flushed %d times, want once", f.n)
		}
	})
}

func TestStopTellsHandlers(t *testing.T) {
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	a, _ := pair(t)
	told := 0
	l.Post(func() {
		if err := l.Watch(a, &handler{stopped: func() { told++ }}); err != nil {
			t.Error(err)
		}
		l.Stop()
		l.Stop()
	})
	l.Run(context.Background())
	if told != 1 {
		t.Errorf("handler told %d times, want once", told)
	}
	if l.Post(func() {}) {
		t.Error("Post accepted by a loop that has ended")
	}
	if err := l.Do(func() {}); err != ErrStopped {
		t.Errorf("Do = %v, want ErrStopped", err)
	}
}

func TestPanicIsNotSwallowed(t *testing.T) {
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer l.release()
	defer func() {
		if r := recover(); r != "boom" {
			t.Errorf("recovered %v, want the callback's panic", r)
		}
	}()
	l.Post(func() { panic("boom") })
	l.Run(context.Background())
	t.Error("Run returned")
}

func BenchmarkWakeUp(b *testing.B) {
	l := start(b)
	for b.Loop() {
		_ = l.Do(func() {})
	}
}
