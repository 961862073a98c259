package loop

import (
	"time"

	"conduit.io/conduit/proxy/flow"
)

// timer is an entry of a binary heap that knows its place, so that Stop removes it at once: most timers are stopped,
// and a stopped timer must not keep its connection alive.
type timer struct {
	when int64
	seq  uint64 // timers due at the same instant run in the order in which they were made
	f    func()
	at   int // index in the heap, -1 when not in it
	heap *timers
}

// Stop implements flow.Timer.
func (t *timer) Stop() {
	if t.at >= 0 {
		t.heap.remove(t.at)
	}
	t.f = nil
}

type timers struct {
	h   []*timer
	seq uint64
}

// After runs f on the loop when d has passed since Now. d <= 0 means the next batch.
func (l *Loop) After(d time.Duration, f func()) flow.Timer {
	if d < 0 {
		d = 0
	}
	ts := &l.timers
	ts.seq++
	t := &timer{when: l.now + int64(d), seq: ts.seq, f: f, at: len(ts.h), heap: ts}
	ts.h = append(ts.h, t)
	ts.up(t.at)
	return t
}

// next is when the earliest timer is due, 0 for none.
func (ts *timers) next() int64 {
	if len(ts.h) == 0 {
		return 0
	}
	return max(ts.h[0].when, 1)
}

// run calls what is due at now. Timers made meanwhile wait for the next batch, even if they are due.
func (ts *timers) run(now int64) {
	last := ts.seq
	for len(ts.h) > 0 {
		t := ts.h[0]
		if t.when > now || t.seq > last {
			return
		}
		ts.remove(0)
		t.f()
	}
}

func (ts *timers) less(i, j int) bool {
	a, b := ts.h[i], ts.h[j]
	return a.when < b.when || (a.when == b.when && a.seq < b.seq)
}

func (ts *timers) swap(i, j int) {
	ts.h[i], ts.h[j] = ts.h[j], ts.h[i]
	ts.h[i].at, ts.h[j].at = i, j
}

func (ts *timers) remove(i int) {
	t, last := ts.h[i], len(ts.h)-1
	if i != last {
		ts.swap(i, last)
	}
	ts.h[last] = nil
	ts.h = ts.h[:last]
	if i != last {
		ts.up(i)
		ts.down(i)
	}
	t.at = -1
}

func (ts *timers) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !ts.less(i, p) {
			return
		}
		ts.swap(i, p)
		i = p
	}
}

func (ts *timers) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(ts.h) {
			return
		}
		if c+1 < len(ts.h) && ts.less(c+1, c) {
			c++
		}
		if !ts.less(c, i) {
			return
		}
		ts.swap(i, c)
		i = c
	}
}
