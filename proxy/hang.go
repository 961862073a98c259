package proxy

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"conduit.io/conduit/proxy/loop"
)

const (
	// askEvery is how often each loop is asked to show that it turns, and asksLost how many times in a row it may fail to before it
	// counts as hung. A turn takes milliseconds; while there is none, the connections of all its pods stand still.
	askEvery = 5 * time.Second
	asksLost = 6
)

// endWhenHung ends the process when one of the loops hangs, so that whoever started it starts another: agents cannot, where the proxy is
// a container of its own. What hangs is written to the log first. It returns when ctx ends.
func endWhenHung(ctx context.Context, loops []*loop.Loop, log *slog.Logger) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for w := newWatch(loops); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if shard := w.ask(); shard >= 0 {
			log.Error("a loop does not turn any more; the proxy ends", "shard", shard, "for", asksLost*askEvery)
			said := make(chan struct{})
			go func() {
				defer close(said)
				stacks := make([]byte, 1<<20)
				log.Error("what hangs", "stacks", string(stacks[:runtime.Stack(stacks, true)]))
			}()
			select {
			case <-said:
			case <-time.After(time.Second): // a thread that the runtime cannot stop
			}
			os.Exit(exitError)
		}
	}
}

// watch knows which loops turn. It counts questions and not time: a process that was stopped, and goes on, has not hung.
type watch struct {
	loops   []*loop.Loop
	lost    []int         // how often there was no answer yet, by shard
	waiting []atomic.Bool // for an answer
}

func newWatch(loops []*loop.Loop) *watch {
	return &watch{loops: loops, lost: make([]int, len(loops)), waiting: make([]atomic.Bool, len(loops))}
}

// ask asks every loop, unless its answer is still to come, and returns the first shard of which it is for the asksLost'th time; -1: none.
func (w *watch) ask() (shard int) {
	for i, l := range w.loops {
		if w.waiting[i].Load() {
			if w.lost[i]++; w.lost[i] >= asksLost {
				return i
			}
			continue
		}
		w.lost[i] = 0
		w.waiting[i].Store(true)
		if !l.Post(func() { w.waiting[i].Store(false) }) {
			w.waiting[i].Store(false) // it has ended
		}
	}
	return -1
}
