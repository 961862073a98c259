package proxy

import (
	"testing"

	"conduit.io/conduit/proxy/loop"
)

// TestHungLoops: a loop that does not turn any more is found, whatever the others do, and one that is late, time and again, is not.
func TestHungLoops(t *testing.T) {
	loops, stop, err := startLoops(3)
	if err != nil {
		t.Fatal(err)
	}
	settle := func(all ...*loop.Loop) {
		for _, l := range all {
			if err := l.Do(func() {}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// block keeps a loop from turning until it is told otherwise.
	block := func(l *loop.Loop) (release func()) {
		blocked, free := make(chan struct{}), make(chan struct{})
		l.Post(func() { close(blocked); <-free })
		<-blocked
		return func() { close(free) }
	}
	w := newWatch(loops)
	for range 3 {
		release := block(loops[1])
		for range asksLost {
			if shard := w.ask(); shard >= 0 {
				t.Fatalf("shard %d, which is late at most", shard)
			}
			settle(loops[0], loops[2])
		}
		release()
		settle(loops...)
	}
	release, found := block(loops[2]), -1
	for range asksLost + 1 { // once it is asked, and then there is no answer
		if found >= 0 {
			t.Errorf("found too early")
		}
		found = w.ask()
		settle(loops[:2]...)
	}
	if found != 2 {
		t.Errorf("found shard %d, and the third hangs", found)
	}
	release()
	stop()
	for range 2 * asksLost {
		if shard := w.ask(); shard >= 0 {
			t.Fatalf("shard %d, which has ended", shard)
		}
	}
}
