package trip

import (
	"math/bits"
	"time"

	"conduit.io/conduit/proxy/flow"
)

const (
	// slotShift makes a slot of the wheel 2^24 ns, which is 17 ms: so late is noticed that a time has passed.
	slotShift = 24
	slots     = 256
)

// wheel has what must end some time, in slots by that time. An entry goes in and out at the cost of a few pointers, because
// nearly all come out in time. There is one timer, for the first slot that is not empty.
type wheel struct {
	clock flow.Clock
	rings [slots]entry // heads
	used  [slots / 64]uint64
	done  int64 // all slots before this one have been looked at
	at    int64 // slot that the timer is for
	timer flow.Timer
	n     int
}

// entry is something in a wheel, until due has passed.
type entry struct {
	prev, next *entry
	due        int64
	owner      interface{ expired(now int64) }
}

func newWheel(c flow.Clock) *wheel {
	w := &wheel{clock: c}
	for i := range w.rings {
		w.rings[i].empty()
	}
	return w
}

func (e *entry) empty() { e.prev, e.next = e, e }

// before puts x before e.
func (e *entry) before(x *entry) {
	x.prev, x.next = e.prev, e
	x.prev.next, e.prev = x, x
}

func (e *entry) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
}

// add puts e in. It must not be in already.
func (w *wheel) add(e *entry) {
	if w.n++; w.n == 1 {
		w.done = w.clock.Now() >> slotShift
	}
	slot := max(e.due>>slotShift, w.done)
	i := slot % slots
	w.rings[i].before(e)
	w.used[i/64] |= 1 << (i % 64)
	if w.timer == nil || slot < w.at {
		w.arm(slot)
	}
}

// remove takes e out, if it is in.
func (w *wheel) remove(e *entry) {
	if e.next != nil {
		e.unlink()
		w.n--
	}
}

// arm sets the timer to the end of a slot.
func (w *wheel) arm(slot int64) {
	if w.timer != nil {
		w.timer.Stop()
	}
	w.at = slot
	w.timer = w.clock.After(time.Duration((slot+1)<<slotShift-w.clock.Now()), w.fire)
}

// fire looks at the slots that have passed.
func (w *wheel) fire() {
	w.timer = nil
	now := w.clock.Now()
	end := now >> slotShift
	for s := max(w.done, end-slots); s < end; s++ {
		w.look(s%slots, now)
	}
	w.done = end
	if w.n > 0 {
		w.arm(w.first())
	}
}

// look lets those of a slot expire that are due. That may remove others, and add some.
func (w *wheel) look(i, now int64) {
	r := &w.rings[i]
	var later entry // those that are there for another round
	later.empty()
	for e := r.next; e != r; e = r.next {
		e.unlink()
		if e.due > now {
			later.before(e)
			continue
		}
		w.n--
		e.owner.expired(now)
	}
	if later.next == &later {
		w.used[i/64] &^= 1 << (i % 64)
		return
	}
	r.prev, r.next = later.prev, later.next
	r.prev.next, r.next.prev = r, r
}

// first is the first slot to be looked at; it may have become empty.
func (w *wheel) first() int64 {
	for k := int64(0); k < slots; {
		i := (w.done + k) % slots
		if u := w.used[i/64] >> (i % 64); u != 0 {
			return w.done + k + int64(bits.TrailingZeros64(u))
		}
		k += 64 - i%64
	}
	return w.done + slots
}
