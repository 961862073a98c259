package meter

import (
	"slices"
	"time"
)

const (
	// expiry is how long a series may stay unused: those of pods that are gone are not kept for ever.
	expiry = 10 * time.Minute
	// spare is how long a series must have been unused to make room for a new one when the bound is reached. What
	// is shorter would take series from traffic that is still there.
	spare = time.Minute
	// makeRoomEvery bounds how often all series are looked at for the least recently used.
	makeRoomEvery = time.Second
	// portion is how many series are copied before the loop gets on with its work.
	portion = 64
)

// Set holds the series of one shard. It belongs to the shard's loop.
type Set struct {
	requests shelf[Requests, *Requests]
	conns    shelf[Conns, *Conns]
}

// NewSet makes a Set of at most max series of requests, and as many of connections, beside those that stand for all
// others.
func NewSet(max int) *Set {
	s := &Set{}
	s.requests.init(max)
	s.conns.init(max)
	return s
}

// Requests is the series for k, made when it is new. now is the loop's time.
func (s *Set) Requests(k Key, now int64) *Requests { return s.requests.get(k, now) }

// Conns is the series for k, made when it is new. now is the loop's time.
func (s *Set) Conns(k Key, now int64) *Conns { return s.conns.get(k, now) }

// Sweep drops the series that have not been used for long.
func (s *Set) Sweep(now int64) {
	s.requests.expire(now - int64(expiry))
	s.conns.expire(now - int64(expiry))
}

// Reading is a copy of a Set.
type Reading struct {
	requests         []*Requests
	conns            []*Conns
	dropped, expired uint64
}

// Read copies the series. do runs a function on the Set's loop and waits, as loop.Do does; it is called several times, so
// that no call takes long. Read may be called from any goroutine but the loop's. If do fails, the copy is incomplete.
func (s *Set) Read(do func(func()) error) *Reading {
	r := &Reading{}
	at, more := 0, true
	next := func() {
		a, b := s.requests.copy(&r.requests, at), s.conns.copy(&r.conns, at)
		at, more = at+portion, a || b
		r.dropped = s.requests.dropped + s.conns.dropped
		r.expired = s.requests.expired + s.conns.expired
	}
	for more && do(next) == nil {
	}
	return r
}

// shelf holds the series of one kind.
type shelf[T any, P interface {
	*T
	base() *series
	clone() *T
}] struct {
	max      int
	n        int // series, without those that stand for others
	byKey    map[Key]P
	places   []P // nil: free. A series keeps its place, so that a reader meets it once
	free     []int
	dropped  uint64 // look-ups beyond the bound
	expired  uint64
	lookedAt int64 // when room was last sought
}

func (h *shelf[T, P]) init(max int) { h.max, h.byKey = max, make(map[Key]P) }

func (h *shelf[T, P]) get(k Key, now int64) P {
	if v := h.byKey[k]; v != nil {
		return v
	}
	rest := k == k.rest()
	if !rest && h.n >= h.max && !h.makeRoom(now) {
		h.dropped++
		return h.get(k.rest(), now)
	}
	if !rest {
		h.n++
	}
	v := P(new(T))
	*v.base() = series{key: k, used: now, gone: rest}
	h.byKey[k] = v
	if last := len(h.free) - 1; last >= 0 {
		h.places[h.free[last]] = v
		h.free = h.free[:last]
	} else {
		h.places = append(h.places, v)
	}
	return v
}

// idle calls f for the series that nothing is under way in, but not for those that stand for others.
func (h *shelf[T, P]) idle(f func(place int, s *series)) {
	for i, v := range h.places {
		if v == nil {
			continue
		}
		if s := v.base(); s.busy == 0 && s.key != s.key.rest() {
			f(i, s)
		}
	}
}

// expire drops the idle series that were last used at a time or before it.
func (h *shelf[T, P]) expire(last int64) {
	h.idle(func(place int, s *series) {
		if s.used > last {
			return
		}
		s.gone = true
		delete(h.byKey, s.key)
		h.places[place] = nil
		h.free = append(h.free, place)
		h.n--
		h.expired++
	})
}

// makeRoom drops some of the series that were unused for the longest time; it reports whether there is room now.
func (h *shelf[T, P]) makeRoom(now int64) bool {
	if now < h.lookedAt+int64(makeRoomEvery) {
		return false
	}
	h.lookedAt = now
	var used []int64
	h.idle(func(_ int, s *series) {
		if s.used <= now-int64(spare) {
			used = append(used, s.used)
		}
	})
	if len(used) == 0 {
		return false
	}
	slices.Sort(used)
	h.expire(used[min(len(used)-1, h.max/16)])
	return true
}

// copy adds a portion of the series to out; it reports whether there are more.
func (h *shelf[T, P]) copy(out *[]*T, at int) bool {
	for _, v := range h.places[min(at, len(h.places)):min(at+portion, len(h.places))] {
		if v != nil {
			*out = append(*out, v.clone())
		}
	}
	return at+portion < len(h.places)
}
