package node

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	api "conduit.io/conduit/api/node"
)

// maxInterest bounds the addresses that the agent is asked about. The last half is for those that pods dial: whoever
// connects to a pod from many addresses uses up the first half alone.
const maxInterest = 16384

// maxPorts is how many of them may be ports of shared addresses: a pod may try all those of a node.
const maxPorts = 4096

// interest is the addresses (port 0), and ports of shared addresses, that the agent is to tell of, for all shards. It is safe
// for concurrent use.
type interest struct {
	mu      sync.Mutex
	ports   int                    // how many of held have one
	held    map[netip.AddrPort]int // by how many shards
	changed map[netip.AddrPort]struct{}
	told    map[netip.AddrPort]struct{}
	kick    chan struct{} // has an element when something has changed
}

func newInterest() *interest {
	return &interest{
		held: map[netip.AddrPort]int{}, changed: map[netip.AddrPort]struct{}{}, told: map[netip.AddrPort]struct{}{}, kick: make(chan struct{}, 1),
	}
}

// hold makes a part of it for one shard; false when there are too many.
func (in *interest) hold(a netip.AddrPort, most int) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.held[a] == 0 {
		if len(in.held) >= most || a.Port() != 0 && in.ports >= maxPorts {
			return false
		}
		in.count(a, 1)
		in.change(a)
	}
	in.held[a]++
	return true
}

// release takes a hold back.
func (in *interest) release(a netip.AddrPort) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.held[a]--; in.held[a] <= 0 {
		delete(in.held, a)
		in.count(a, -1)
		in.change(a)
	}
}

func (in *interest) count(a netip.AddrPort, n int) {
	if a.Port() != 0 {
		in.ports += n
	}
}

func (in *interest) change(a netip.AddrPort) {
	in.changed[a] = struct{}{}
	select {
	case in.kick <- struct{}{}:
	default:
	}
}

// all is what is held; an agent that is told of it needs to be told of later changes alone.
func (in *interest) all() []netip.AddrPort {
	in.mu.Lock()
	defer in.mu.Unlock()
	clear(in.changed)
	clear(in.told)
	out := make([]netip.AddrPort, 0, len(in.held))
	for a := range in.held {
		out = append(out, a)
		in.told[a] = struct{}{}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// list is what is held.
func (in *interest) list() []netip.AddrPort {
	in.mu.Lock()
	defer in.mu.Unlock()
	return slices.Collect(maps.Keys(in.held))
}

// take is what has changed since all, and since take.
func (in *interest) take() *api.Lookup {
	in.mu.Lock()
	defer in.mu.Unlock()
	l := &api.Lookup{}
	for a := range in.changed {
		_, told := in.told[a]
		switch held := in.held[a] > 0; {
		case held && !told:
			l.Add = append(l.Add, a)
			in.told[a] = struct{}{}
		case !held && told:
			l.Drop = append(l.Drop, a)
			delete(in.told, a)
		}
	}
	clear(in.changed)
	return l
}

// Interest has an element when Lookup has something to tell.
func (n *Node) Interest() <-chan struct{} { return n.interest.kick }

// Lookup is the addresses in which the Node has become interested, or no longer is, since it was asked last and since
// Hello. It may be empty.
func (n *Node) Lookup() *api.Lookup { return n.interest.take() }
