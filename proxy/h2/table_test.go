package h2

import (
	"math/rand/v2"
	"testing"

	"conduit.io/conduit/proxy/exchange"
)

// TestTable compares the table with a map, over identifiers as clients choose them.
func TestTable(t *testing.T) {
	for name, next := range map[string]func(i uint32) uint32{
		"consecutive": func(i uint32) uint32 { return 2*i + 1 },
		"strided":     func(i uint32) uint32 { return i<<12 + 1 },
		"random":      func(uint32) uint32 { return rand.Uint32()>>1 | 1 },
	} {
		t.Run(name, func(t *testing.T) {
			var tab table
			want := map[uint32]*exchange.Stream{}
			var ids []uint32
			for i := range uint32(20_000) {
				if rand.IntN(8) < 4 && len(ids) < 500 || len(ids) == 0 {
					id, s := next(i), &exchange.Stream{}
					if want[id] == nil {
						tab.put(id, s)
						want[id] = s
						ids = append(ids, id)
					}
				} else {
					k := rand.IntN(len(ids))
					tab.del(ids[k])
					tab.del(ids[k])
					delete(want, ids[k])
					ids[k] = ids[len(ids)-1]
					ids = ids[:len(ids)-1]
				}
				far := 0
				for i, p := range tab.slots {
					if p.id != 0 && tab.home(p.id) != i {
						far++
					}
				}
				if far != tab.far {
					t.Fatalf("%d streams are not in their place, %d counted", far, tab.far)
				}
				if tab.len() != len(want) || len(tab.refs()) != len(want) {
					t.Fatalf("%d streams, %d listed, want %d", tab.len(), len(tab.refs()), len(want))
				}
			}
			for id, s := range want {
				if tab.get(id) != s || tab.get(id+1) != nil {
					t.Fatalf("stream %d is not found, or one that is not there", id)
				}
				tab.del(id)
			}
			if tab.len() != 0 || len(tab.slots) > keepPlaces {
				t.Errorf("%d streams and %d places are left", tab.len(), len(tab.slots))
			}
		})
	}
}

// A client that spaces its identifiers so that they would share a place in a table of known layout gains nothing.
func TestTableSpreads(t *testing.T) {
	for shift := 1; shift < 20; shift++ {
		var tab table
		for i := range uint32(1000) {
			tab.put(i<<shift|1, &exchange.Stream{})
		}
		far := 0
		for i, p := range tab.slots {
			if p.id != 0 {
				far = max(far, (i-tab.home(p.id))&(len(tab.slots)-1))
			}
		}
		if far > 400 {
			t.Errorf("every %d-th identifier: a stream is %d places from where the search begins", 1<<shift, far)
		}
	}
}
