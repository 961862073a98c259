package node

import (
	"sync/atomic"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/sock"
)

// pod is an enrolled pod. It is shared by the shards.
type pod struct {
	cookie   uint64
	netns    *sock.Netns // open as long as the pod is registered
	workload atomic.Pointer[mesh.Workload]
	draining atomic.Bool
	removed  atomic.Bool
	drains   uint64 // how often it began or ceased to drain; for Node.mu
}

func (p *pod) set(w *mesh.Workload) { p.workload.Store(w) }

// record is the pod's workload as the agent last sent it. Do not change it.
func (p *pod) record() *mesh.Workload { return p.workload.Load() }

// share is a shard's part of a pod: its listeners, in one shard, and its connections.
type share struct {
	pod       *pod
	listeners []*sock.Listener
	downs     down // ring of the accepted connections
	open      int  // how many
	dialled   int  // connections in the pod's namespace outside the pools: opaque ones
	drain     flow.Timer
	drained   func() // to be called when nothing is left
}

func newShare(p *pod) *share {
	s := &share{pod: p}
	s.downs.prev, s.downs.next = &s.downs, &s.downs
	return s
}

// greedy reports whether the pod has more connections in this shard than an eighth of the descriptors, each of which may need two: in
// a shortage they are what others want for.
func (s *share) greedy() bool { return s.open+s.dialled > sock.Descriptors()/8 }

func (s *share) add(d *down) {
	s.open++
	d.prev, d.next = s.downs.prev, &s.downs
	d.prev.next, d.next.prev = d, d
}

func (s *share) drop(d *down) {
	s.open--
	d.prev.next, d.next.prev = d.next, d.prev
	d.prev, d.next = nil, nil
}

// each calls f for every accepted connection. f may end it: connections leave the ring later, when they are closed.
func (s *share) each(f func(d *down)) {
	for d := s.downs.next; d != &s.downs && d != nil; {
		next := d.next
		f(d)
		d = next
	}
}

// stop closes the listeners.
func (s *share) stop() {
	for _, l := range s.listeners {
		l.Close()
	}
	s.listeners = nil
}
