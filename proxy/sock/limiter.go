package sock

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// maxHandshakes may be under way at once, and maxWaiting wait, in each role. Clients and servers are counted
	// apart: in one process the one may wait for the other.
	maxHandshakes = 512
	maxWaiting    = 4096
	// maxOfOnePeer of them may be under way with one address: what one peer leaves half-open keeps no other waiting. A
	// peer that has none under way need not wait for others, as long as no more than twice maxHandshakes are.
	maxOfOnePeer = maxHandshakes / 8
)

// Handshakes whose peer has been silent for longer than this give way to those that wait. A server's peer needs a round
// trip and some computing; a client's may itself be busy with many.
const (
	serverPatience = time.Second
	clientPatience = 3 * time.Second
)

var (
	serverSlots = limiter{patience: serverPatience}
	clientSlots = limiter{patience: clientPatience}
)

// limiter lets the handshakes of a process have their turns in fairness to peers, told by address: those that wait are
// served in rotation of their peers, one that is at its own limit waits for itself, and where too many wait it is the
// peer with the most that gives way. Of one peer's the newest comes first: where many wait, the oldest are those that will
// come too late.
type limiter struct {
	patience time.Duration

	mu      sync.Mutex
	active  map[*handshake]struct{}
	running map[netip.Addr]int          // of active, by peer
	waiting map[netip.Addr][]*handshake // by peer, in order of arrival
	turns   []netip.Addr                // the peers in waiting, in rotation
	waits   int                         // how many wait
	timer   *time.Timer                 // of review; nil while nobody waits
}

// enter runs h now, or when another has ended; it reports false when too many wait.
func (s *limiter) enter(h *handshake) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	peer := h.c.remote.Addr()
	if s.free(peer) {
		s.run(h)
		return true
	}
	if s.waits >= maxWaiting && !s.makeRoom(peer) {
		return false
	}
	if s.waiting == nil {
		s.waiting = map[netip.Addr][]*handshake{}
	}
	if len(s.waiting[peer]) == 0 {
		s.turns = append(s.turns, peer)
	}
	s.waiting[peer] = append(s.waiting[peer], h)
	s.waits++
	if s.timer == nil {
		s.timer = time.AfterFunc(s.patience/4, s.review)
	}
	return true
}

func (s *limiter) free(peer netip.Addr) bool {
	n := s.running[peer]
	return len(s.active) < maxHandshakes && n < maxOfOnePeer || n == 0 && len(s.active) < 2*maxHandshakes
}

func (s *limiter) run(h *handshake) {
	if s.active == nil {
		s.active, s.running = map[*handshake]struct{}{}, map[netip.Addr]int{}
	}
	s.active[h] = struct{}{}
	s.running[h.c.remote.Addr()]++
	go h.run()
}

// exit ends the turn of h, and gives it to the next peer in the rotation that may have it.
func (s *limiter) exit(h *handshake) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, h)
	peer := h.c.remote.Addr()
	if n := s.running[peer] - 1; n > 0 {
		s.running[peer] = n
	} else {
		delete(s.running, peer)
	}
	if next := s.next(); next != nil {
		s.run(next)
	}
}

// next takes the one whose turn it is off the queue; nil if there is none that may run.
func (s *limiter) next() *handshake {
	i := slices.IndexFunc(s.turns, s.free)
	if i < 0 {
		return nil
	}
	p := s.turns[i]
	s.turns = append(slices.Delete(s.turns, i, i+1), p) // the others come first next time
	last := len(s.waiting[p]) - 1
	h := s.waiting[p][last]
	s.dequeue(p, last)
	return h
}

// makeRoom drops the oldest of the peer that has most waiting, unless that is peer itself.
func (s *limiter) makeRoom(peer netip.Addr) bool {
	most := peer
	for p, l := range s.waiting {
		if len(l) > len(s.waiting[most]) {
			most = p
		}
	}
	if len(s.waiting[most]) <= len(s.waiting[peer])+1 {
		return false
	}
	h := s.waiting[most][0]
	s.dequeue(most, 0)
	h.dropped()
	return true
}

// dequeue takes the i-th of a peer's out of those that wait.
func (s *limiter) dequeue(peer netip.Addr, i int) {
	s.waits--
	if l := slices.Delete(s.waiting[peer], i, i+1); len(l) > 0 {
		s.waiting[peer] = l
		return
	}
	delete(s.waiting, peer)
	i = slices.Index(s.turns, peer)
	s.turns = slices.Delete(s.turns, i, i+1)
}

// leaveQueue reports whether h was waiting; it does so no longer.
func (s *limiter) leaveQueue(h *handshake) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	peer := h.c.remote.Addr()
	i := slices.Index(s.waiting[peer], h)
	if i < 0 {
		return false
	}
	s.dequeue(peer, i)
	return true
}

// review makes handshakes give way that are idle, as many as wait for a turn: first those of the peers with most under
// way, and those first that have been idle longest.
func (s *limiter) review() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits == 0 {
		s.timer = nil
		return
	}
	s.timer = time.AfterFunc(s.patience/4, s.review)
	var idle []*handshake
	before := time.Now().Add(-s.patience).UnixNano()
	for h := range s.active {
		peer := h.c.remote.Addr()
		if len(s.active) < maxHandshakes && len(s.waiting[peer]) == 0 {
			continue // nobody waits for it
		}
		if t := h.idle.Load(); t != 0 && t < before {
			idle = append(idle, h)
		}
	}
	slices.SortFunc(idle, func(a, b *handshake) int {
		return cmp.Or(cmp.Compare(s.running[b.c.remote.Addr()], s.running[a.c.remote.Addr()]), cmp.Compare(a.idle.Load(), b.idle.Load()))
	})
	for _, h := range idle[:min(len(idle), s.waits)] {
		h.give(ErrBusy)
	}
}
