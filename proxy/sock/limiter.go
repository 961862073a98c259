package sock

import (
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

var serverSlots, clientSlots limiter

// limiter counts handshakes under way in this process, and lets peers, told by address, have their turns in fairness: a
// peer that has as many as it may waits for itself, and where too many wait it is the peer with the most that gives way.
type limiter struct {
	mu      sync.Mutex
	active  int
	running map[netip.Addr]int // of active, by peer
	waiting []*handshake       // in order of arrival
	queued  map[netip.Addr]int // of waiting, by peer
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
	if len(s.waiting) >= maxWaiting && !s.makeRoom(peer) {
		return false
	}
	s.waiting = append(s.waiting, h)
	if s.queued == nil {
		s.queued = map[netip.Addr]int{}
	}
	s.queued[peer]++
	return true
}

func (s *limiter) free(peer netip.Addr) bool {
	return s.active < maxHandshakes && s.running[peer] < maxOfOnePeer
}

func (s *limiter) run(h *handshake) {
	if s.running == nil {
		s.running = map[netip.Addr]int{}
	}
	s.active++
	s.running[h.c.remote.Addr()]++
	go h.run()
}

// exit ends one with peer, and gives the turn to the one that waits longest and may have it.
func (s *limiter) exit(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	less(s.running, peer)
	for i, h := range s.waiting {
		if s.free(h.c.remote.Addr()) {
			s.dequeue(i)
			s.run(h)
			return
		}
	}
}

// makeRoom drops the newest of the peer that has most waiting, unless that is peer itself.
func (s *limiter) makeRoom(peer netip.Addr) bool {
	var most netip.Addr
	for p, n := range s.queued {
		if n > s.queued[most] {
			most = p
		}
	}
	if s.queued[most] <= s.queued[peer]+1 {
		return false
	}
	for i, h := range slices.Backward(s.waiting) {
		if h.c.remote.Addr() == most {
			s.dequeue(i)
			h.dropped()
			return true
		}
	}
	return false
}

func (s *limiter) dequeue(i int) {
	less(s.queued, s.waiting[i].c.remote.Addr())
	s.waiting = slices.Delete(s.waiting, i, i+1)
}

// leaveQueue reports whether h was waiting; it does so no longer.
func (s *limiter) leaveQueue(h *handshake) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.waiting, h)
	if i < 0 {
		return false
	}
	s.dequeue(i)
	return true
}

// less counts down, and forgets what is at nought.
func less(m map[netip.Addr]int, peer netip.Addr) {
	if n := m[peer] - 1; n > 0 {
		m[peer] = n
	} else {
		delete(m, peer)
	}
}

// dropped ends a handshake that has waited and will not have its turn. It is called on any goroutine.
func (h *handshake) dropped() {
	if !h.c.l.Post(func() {
		if !h.ending {
			h.failSoon(ErrBusy)
		}
	}) {
		unix.Close(h.c.fd) // the loop has ended and forgotten us
	}
}
