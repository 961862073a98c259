package h2

import (
	"math/rand/v2"

	"conduit.io/conduit/proxy/exchange"
)

// table holds a connection's open streams by their identifiers: a hash table with linear probing. Identifiers that follow
// one another have neighbouring places; those that a peer has chosen to share one place do not, because only this
// process knows the factor. Empty, it holds little memory. The zero table is ready for use.
type table struct {
	slots []place // a power of two
	n     int
	far   int // streams that are not in their own place
}

type place struct {
	id uint32 // 0: free
	s  *exchange.Stream
}

const (
	minPlaces  = 8
	keepPlaces = 256 // an empty table keeps no more
)

var factor = rand.Uint32() | 1

func (t *table) len() int { return t.n }

func (t *table) home(id uint32) int {
	return int(id>>1+(id>>12)*factor>>16) & (len(t.slots) - 1)
}

// find is the place of id, or the free one where it belongs.
func (t *table) find(id uint32) int {
	i := t.home(id)
	for t.slots[i].id != id && t.slots[i].id != 0 {
		i = (i + 1) & (len(t.slots) - 1)
	}
	return i
}

// get is the stream with id, or nil.
func (t *table) get(id uint32) *exchange.Stream {
	if t.n == 0 {
		return nil
	}
	return t.slots[t.find(id)].s
}

// put adds a stream under an id that is not 0 and not in use.
func (t *table) put(id uint32, s *exchange.Stream) {
	if 4*(t.n+1) > 3*len(t.slots) {
		old := t.slots
		t.slots, t.far = make([]place, max(minPlaces, 2*len(old))), 0
		for _, p := range old {
			if p.id != 0 {
				t.add(p)
			}
		}
	}
	t.add(place{id, s})
	t.n++
}

func (t *table) add(p place) {
	i := t.find(p.id)
	t.slots[i] = p
	if i != t.home(p.id) {
		t.far++
	}
}

// del removes the stream with id, if it is there.
func (t *table) del(id uint32) {
	if t.n == 0 {
		return
	}
	i := t.find(id)
	if t.slots[i].id == 0 {
		return
	}
	t.n--
	if t.n == 0 && len(t.slots) > keepPlaces {
		t.slots, t.far = nil, 0
		return
	}
	if i != t.home(id) {
		t.far--
	}
	// Those behind that are not in their own place move up to it, or as near to it as there is room.
	mask := len(t.slots) - 1
	for j := (i + 1) & mask; t.far > 0 && t.slots[j].id != 0; j = (j + 1) & mask {
		if h := t.home(t.slots[j].id); h != j && (j-h)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			if h == i {
				t.far--
			}
			i = j
		}
	}
	t.slots[i] = place{}
}

// refs are all streams. They may end, and others be added, while the caller goes through them.
func (t *table) refs() []exchange.Ref {
	all := make([]exchange.Ref, 0, t.n)
	for _, p := range t.slots {
		if p.id != 0 {
			all = append(all, p.s.Ref())
		}
	}
	return all
}
