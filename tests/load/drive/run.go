package drive

import (
	"context"
	"fmt"
	"time"

	"conduit.io/conduit/tests/load/engine"
	"conduit.io/conduit/tests/load/hist"
)

const (
	lateAfter   = time.Millisecond
	sweepEvery  = 100 * time.Millisecond
	redialAfter = 50 * time.Millisecond
	connectTime = 10 * time.Second
	maxDialing  = 128
)

// request is one that is being made.
type request struct {
	link     *link
	id       uint32
	intended int64 // when it was to start
	sent     int64
	status   int
	reason   string // the mesh's, if it has answered in the server's place
	got      int
	owed     int    // received, not credited
	grpc     string // status
	trailer  bool
	next     *request // in the free list
}

// runner is a load being generated. It lives on its loop.
type runner struct {
	cfg    *Config
	loop   *engine.Loop
	shape  shape
	slots  []*link            // the connection that is in use, of each that there are to be
	gone   map[*link]struct{} // replaced, but requests of theirs are going on
	ready  queue[*link]       // those with room, in turn
	dialed int                // slots that have been dialled before the start
	up     int                // slots that have connected before the start
	free   *request

	started  bool
	stopped  bool // no more requests are begun
	start    int64
	last     int64        // end of the last request
	begun    int          // requests that were to start until now
	waiting  queue[int64] // when those were to start that no connection has had room for
	live     int
	interval float64
	pacer    *engine.Timer
	churner  *engine.Timer
	churned  int // slots that have been, in turn
	sweeper  *engine.Timer

	hist hist.Histogram
	res  Result
	err  error
}

// Run generates load until it has ended or ctx is done, and waits for the answers. An error means that there is no
// result: a bad Config, or a target that cannot be reached at the start.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	loop, err := engine.New()
	if err != nil {
		return nil, err
	}
	r := &runner{cfg: &cfg, loop: loop, slots: make([]*link, cfg.Connections), gone: map[*link]struct{}{}}
	r.res.Failures = map[string]uint64{}
	r.shape.make(&cfg)
	loop.Post(r.connect)
	stop := context.AfterFunc(ctx, func() { loop.Post(r.interrupt) })
	defer stop()
	if err := loop.Run(); err != nil {
		return nil, err
	}
	if r.err != nil {
		return nil, r.err
	}
	r.res.finish(&r.hist, time.Duration(r.last-r.start))
	return &r.res, nil
}

// abort ends a load that could not start.
func (r *runner) abort(err error) {
	r.err = err
	r.loop.Stop()
}

func (r *runner) interrupt() {
	if !r.started {
		r.abort(context.Canceled)
		return
	}
	r.stop()
}

// connect dials the connections, not too many at a time: a listener's queue is short.
func (r *runner) connect() {
	t := r.loop.NewTimer(func() {
		if !r.started && r.err == nil {
			r.abort(fmt.Errorf("connect to %s: %d of %d connections after %v", r.cfg.Target, r.up, len(r.slots), connectTime))
		}
	})
	r.loop.Set(t, engine.Now()+int64(connectTime))
	r.dialMore()
}

func (r *runner) dialMore() {
	for r.dialed < len(r.slots) && r.dialed-r.up < maxDialing && r.err == nil {
		r.dialed++
		r.dial(r.dialed - 1)
	}
}

// usable is called when the peer of a connection has been heard of.
func (r *runner) usable(l *link) {
	if r.started {
		r.offer(l)
		r.dispatch()
		return
	}
	r.up++
	r.dialMore()
	if r.up == len(r.slots) {
		r.begin()
	}
}

func (r *runner) begin() {
	r.started = true
	r.start = engine.Now()
	r.last = r.start
	r.sweeper = r.loop.NewTimer(r.sweep)
	r.loop.Set(r.sweeper, r.start+int64(sweepEvery))
	if r.cfg.Duration > 0 {
		r.loop.Set(r.loop.NewTimer(r.stop), r.start+int64(r.cfg.Duration))
	}
	if r.cfg.Churn > 0 {
		r.churner = r.loop.NewTimer(r.churn)
		r.loop.Set(r.churner, r.start+int64(float64(time.Second)/r.cfg.Churn))
	}
	if r.cfg.Open {
		r.interval = float64(time.Second) / r.cfg.Rate
		r.pacer = r.loop.NewTimer(r.pace)
		r.pace()
	}
	for _, l := range r.slots {
		r.offer(l)
	}
	r.dispatch()
}

// pace begins what is due.
func (r *runner) pace() {
	now := engine.Now()
	burst := max(1, r.cfg.Burst)
	for !r.stopped {
		at := r.start + int64(float64(r.begun-r.begun%burst)*r.interval)
		if at > now {
			r.loop.Set(r.pacer, at)
			break
		}
		if d := r.cfg.Duration; d > 0 && at-r.start >= int64(d) {
			break // stop is about to be called
		}
		r.waiting.push(at)
		r.count()
	}
	r.dispatch()
}

// count counts a request in, and stops when that was the last.
func (r *runner) count() {
	r.begun++
	if n := r.cfg.Requests; n > 0 && r.begun >= n {
		r.stop()
	}
}

// offer puts a connection that has room at the end of the queue of those.
func (r *runner) offer(l *link) {
	if r.started && !l.offered && l.room() > 0 {
		l.offered = true
		r.ready.push(l)
	}
}

// dispatch gives each connection with room a request in turn, as long as there are any.
func (r *runner) dispatch() {
	for r.ready.len() > 0 && (r.waiting.len() > 0 || !r.cfg.Open && !r.stopped) {
		l := r.ready.pop()
		l.offered = false
		if l.room() == 0 {
			continue
		}
		now := engine.Now()
		if r.waiting.len() > 0 {
			r.send(l, r.waiting.pop(), now)
		} else {
			r.send(l, now, now)
			r.count()
		}
		r.offer(l)
	}
}

// stop begins no more requests, and ends the load when those that have begun are over.
func (r *runner) stop() {
	if r.stopped {
		return
	}
	r.stopped = true
	if r.pacer != nil {
		r.loop.Unset(r.pacer)
	}
	if r.churner != nil {
		r.loop.Unset(r.churner)
	}
	r.maybeDone()
}

func (r *runner) maybeDone() {
	if r.stopped && r.live == 0 && r.waiting.len() == 0 {
		for _, l := range r.slots {
			l.close()
		}
		r.loop.Stop()
	}
}

// queue is first in, first out.
type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) len() int { return len(q.items) - q.head }
func (q *queue[T]) peek() T  { return q.items[q.head] }
func (q *queue[T]) push(v T) { q.items = append(q.items, v) }
func (q *queue[T]) pop() T {
	v := q.items[q.head]
	if q.head++; q.head > len(q.items)/2 {
		q.items = q.items[:copy(q.items, q.items[q.head:])]
		q.head = 0
	}
	return v
}
