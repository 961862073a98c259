package proxy

import (
	"testing"
	"time"
)

// TestTrimDue: a collection is asked for where it gives enough back, not too often, and after a while in any case.
func TestTrimDue(t *testing.T) {
	const mb = 1 << 20
	for name, c := range map[string]struct {
		h    heap
		age  time.Duration // of the last collection
		want bool
	}{
		"nothing to give back":               {heap{1, mb, mb, 0}, time.Hour, false},
		"garbage":                            {heap{1, mb, mb + trimSlack, 0}, 0, true},
		"free pages":                         {heap{1, mb, mb, trimSlack}, 0, true},
		"both, each too little":              {heap{1, mb, mb + trimSlack/2, trimSlack / 2}, 0, true},
		"a heap that shrank":                 {heap{1, 2 * mb, mb, 0}, 0, false},
		"little of a large heap":             {heap{1, 80 * mb, 89 * mb, 0}, 0, false},
		"much of a large heap":               {heap{1, 80 * mb, 90 * mb, 0}, 0, true},
		"the collector is busy":              {heap{1 + trimCycles + 1, mb, mb, 5 * mb}, 0, false},
		"the collector is nearly busy":       {heap{1 + trimCycles, mb, mb, 5 * mb}, 0, true},
		"an old collection":                  {heap{1, 3 * mb, 3 * mb, 0}, trimAge, true},
		"not yet old":                        {heap{1, 3 * mb, 3 * mb, 0}, trimAge - time.Second, false},
		"one collection makes another young": {heap{2, 20 * mb, 20 * mb, 0}, time.Hour, false},
	} {
		began := time.Now()
		tr := trimmer{cycles: 1, since: began, age: trimAge}
		if got := tr.due(c.h, began.Add(c.age)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestTrimAges: a heap that stays as it is, is collected ever more rarely, until the collector runs by itself again.
func TestTrimAges(t *testing.T) {
	tr := trimmer{}
	now := time.Now()
	h := heap{cycles: 7, live: 8 << 20, objects: 8 << 20}
	next := func() (d time.Duration) {
		for began := now; ; now = now.Add(time.Second) {
			if tr.due(h, now) {
				h.cycles++
				return now.Sub(began)
			}
		}
	}
	for _, want := range []time.Duration{10, 20, 40, 80, 120, 120} {
		if got := next(); got != want*time.Second {
			t.Errorf("another collection after %v, want %d s", got, want)
		}
	}
	h.cycles++
	if got := next(); got != trimAge {
		t.Errorf("after one that was not asked for, another after %v", got)
	}
}
