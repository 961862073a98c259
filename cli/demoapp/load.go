package demoapp

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxInFlight = 64               // calls at once; a tick that finds none free starts none
	warmCalls   = 20               // calls in a row that must succeed before everything is said to answer
	warmLimit   = 30 * time.Second // how long they have to
	warmPause   = 50 * time.Millisecond
)

// load starts calls at a constant rate, whatever becomes of those before.
type load struct {
	rate float64
	call func(ctx context.Context, n int64) error
	n    atomic.Int64

	mu     sync.Mutex
	cancel context.CancelFunc
	done   chan struct{}
}

func newLoad(rate float64, call func(ctx context.Context, n int64) error) *load {
	return &load{rate: rate, call: call}
}

// warm calls until warmCalls in a row succeed.
func (l *load) warm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, warmLimit)
	defer cancel()
	var last error
	for good := 0; good < warmCalls; {
		if err := l.call(ctx, l.n.Add(1)); err == nil {
			good++
			continue
		} else if ctx.Err() == nil || last == nil {
			last, good = err, 0
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no %d calls in a row succeeded within %s: %w", warmCalls, warmLimit, last)
		case <-time.After(warmPause):
		}
	}
	return nil
}

// start begins the load; it does nothing when it runs already.
func (l *load) start(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil {
		return
	}
	ticking, cancel := context.WithCancel(ctx)
	l.cancel, l.done = cancel, make(chan struct{})
	go l.run(ctx, ticking, l.done)
}

// stop starts no more calls and waits for those under way.
func (l *load) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel == nil {
		return
	}
	l.cancel()
	<-l.done
	l.cancel = nil
}

func (l *load) run(calls, ticking context.Context, done chan<- struct{}) {
	var wg sync.WaitGroup
	defer func() { wg.Wait(); close(done) }()
	free := make(chan struct{}, maxInFlight)
	tick := time.NewTicker(time.Duration(float64(time.Second) / l.rate))
	defer tick.Stop()
	for {
		select {
		case <-ticking.Done():
			return
		case <-tick.C:
		}
		select {
		case free <- struct{}{}:
			n := l.n.Add(1)
			wg.Go(func() {
				defer func() { <-free }()
				_ = l.call(calls, n) // the caller counts it
			})
		default:
		}
	}
}
