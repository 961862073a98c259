package static

import (
	"testing"

	"conduit.io/conduit/proxy/exchange"
)

// TestFreeCallsAreBounded: a burst's calls go back to the collector, but for those that are used again.
func TestFreeCallsAreBounded(t *testing.T) {
	s := &Server{}
	all := make([]*call, 4*exchange.MaxFree)
	for range 2 {
		for i := range all {
			all[i] = s.newCall()
		}
		for _, c := range all {
			s.freeCall(c)
		}
		n := 0
		for c := s.free; c != nil; c = c.next {
			n++
		}
		if n != exchange.MaxFree {
			t.Errorf("%d free calls are kept, want %d", n, exchange.MaxFree)
		}
	}
}
