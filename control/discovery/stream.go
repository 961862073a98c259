package discovery

import (
	"net/netip"
	"slices"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
)

// maxSubscriptions bounds what one stream may ask about; a node of 110 pods that dials a thousand addresses from each of
// ten services stays far below.
const maxSubscriptions = 16384

// maxRefused bounds the answers to those beyond that wait to be sent.
const maxRefused = 8192

// Stream is what one agent is subscribed to, and what of it has changed since it was last told. What waits for a slow one is a
// set of names of what it is subscribed to: it is bounded, and is always told the newest.
//
// All of it is guarded by the index's lock.
type Stream struct {
	x     *Index
	node  string
	wake  chan struct{} // has one element when there may be something to send
	since uint64        // what the first response may leave out; 0: nothing
	fresh bool          // nothing was sent yet
	moved bool          // the locality is to be sent
	count int

	subs map[netip.Addr][]sub
	refs map[*entry]int // how many subscriptions lead to it

	// What is to be sent.
	answers   map[netip.Addr]struct{}
	services  map[*entry]*pending
	workloads map[*workload]struct{}
	refused   []*discoveryv1.Address
}

// sub is a subscription to one port of an address, or, 0, to all.
type sub struct {
	port   uint32
	leads  *entry // as last answered
	answer bool   // it was answered by this stream, or by the one that it resumes
}

// pending is what of a service is to be sent.
type pending struct {
	described bool
	all       bool
	ids       map[string]struct{}
}

// Open makes a stream of the agent on a node. The caller closes it. resume may be nil.
func (x *Index) Open(node string, resume *discoveryv1.Position) *Stream {
	x.mu.Lock()
	defer x.mu.Unlock()
	st := &Stream{x: x, node: node, wake: make(chan struct{}, 1), fresh: true, moved: true,
		subs: map[netip.Addr][]sub{}, refs: map[*entry]int{},
		answers: map[netip.Addr]struct{}{}, services: map[*entry]*pending{}, workloads: map[*workload]struct{}{}}
	if resume.GetEpoch() == x.epoch && resume.GetVersion() <= x.version {
		st.since = resume.GetVersion()
	}
	member(x.nodes, node).streams[st] = struct{}{}
	x.streams++
	st.poke()
	return st
}

// Close takes the stream out of the index.
func (st *Stream) Close() {
	x := st.x
	x.mu.Lock()
	defer x.mu.Unlock()
	for a, subs := range st.subs {
		for _, s := range subs {
			st.drop(a, s)
		}
		st.unwatch(a)
	}
	st.subs = nil
	if g := x.nodes[st.node]; g != nil {
		delete(g.streams, st)
		x.release(x.nodes, st.node)
	}
	x.streams--
}

// Wake gets an element when there may be something to send.
func (st *Stream) Wake() <-chan struct{} { return st.wake }

func (st *Stream) poke() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// Subscribe adds addresses. It reports false when the stream asks for so much too much that it must end.
func (st *Stream) Subscribe(addrs []*discoveryv1.Address) bool {
	st.x.mu.Lock()
	defer st.x.mu.Unlock()
	defer st.poke()
	for _, m := range addrs {
		a, port, ok := parse(m)
		switch have := slices.ContainsFunc(st.subs[a], func(s sub) bool { return s.port == port }); {
		case ok && have:
			for i := range st.subs[a] {
				st.subs[a][i].answer = false
			}
		case !ok, st.count >= maxSubscriptions:
			if len(st.refused) >= maxRefused {
				return false
			}
			st.refused = append(st.refused, m)
			continue
		default:
			st.add(a, port)
		}
		st.answers[a] = struct{}{}
	}
	return true
}

func (st *Stream) add(a netip.Addr, port uint32) {
	x := st.x
	st.count++
	if len(st.subs[a]) == 0 {
		c := x.at(a)
		c.watch = append(c.watch, st)
	}
	st.subs[a] = append(st.subs[a], sub{port: port, answer: st.fresh && st.since > 0})
	if port != 0 {
		if x.portSubs[port] == nil {
			x.portSubs[port] = map[*Stream]int{}
		}
		x.portSubs[port][st]++
	}
}

// Unsubscribe takes addresses back.
func (st *Stream) Unsubscribe(addrs []*discoveryv1.Address) {
	st.x.mu.Lock()
	defer st.x.mu.Unlock()
	for _, m := range addrs {
		a, port, ok := parse(m)
		i := slices.IndexFunc(st.subs[a], func(s sub) bool { return s.port == port })
		if !ok || i < 0 {
			continue
		}
		st.drop(a, st.subs[a][i])
		if st.subs[a] = slices.Delete(st.subs[a], i, i+1); len(st.subs[a]) == 0 {
			delete(st.subs, a)
			delete(st.answers, a)
			st.unwatch(a)
		}
	}
}

// drop ends one subscription, but for its place in subs.
func (st *Stream) drop(_ netip.Addr, s sub) {
	st.count--
	st.lead(s.leads, nil)
	if s.port == 0 {
		return
	}
	if m := st.x.portSubs[s.port]; m[st] > 1 {
		m[st]--
	} else if delete(m, st); len(m) == 0 {
		delete(st.x.portSubs, s.port)
	}
}

func (st *Stream) unwatch(a netip.Addr) {
	if c := st.x.addrs[a]; c != nil {
		if i, last := slices.Index(c.watch, st), len(c.watch)-1; i >= 0 {
			c.watch[i], c.watch[last] = c.watch[last], nil
			if c.watch = c.watch[:last]; last == 0 {
				c.watch = nil
			}
		}
		st.x.forget(a)
	}
}

// lead notes that a subscription leads to another service; either may be nil. It reports whether the stream had none
// that led there.
func (st *Stream) lead(from, to *entry) (first bool) {
	if to != nil {
		st.refs[to]++
		to.streams[st] = struct{}{}
		first = st.refs[to] == 1
	}
	if from == nil {
		return first
	}
	if st.refs[from]--; st.refs[from] == 0 {
		delete(st.refs, from)
		delete(st.services, from)
		delete(from.streams, st)
		st.x.forgetEntry(from)
	}
	return first
}

// askPort has the addresses answered again that are subscribed to with the port.
func (st *Stream) askPort(port uint32) {
	for a, subs := range st.subs {
		if slices.ContainsFunc(subs, func(s sub) bool { return s.port == port }) {
			st.answers[a] = struct{}{}
			for i := range subs {
				subs[i].answer = false
			}
		}
	}
	st.poke()
}

func (st *Stream) mark(w *workload) {
	st.workloads[w] = struct{}{}
	st.poke()
}

func (st *Stream) service(s *entry) *pending {
	p := st.services[s]
	if p == nil {
		p = &pending{ids: map[string]struct{}{}}
		st.services[s] = p
	}
	return p
}

// endpoint notes an endpoint. When most of those noted must be gone by now, all that are there are less to remember.
func (p *pending) endpoint(id string, s *entry) {
	if p.all {
		return
	}
	p.ids[id] = struct{}{}
	if len(p.ids) > len(s.endpoints)+64 {
		p.all, p.ids = true, map[string]struct{}{}
	}
}

// parse reads an address from a message.
func parse(m *discoveryv1.Address) (a netip.Addr, port uint32, ok bool) {
	a, ok = netip.AddrFromSlice(m.GetIp())
	return a.Unmap(), m.GetPort(), ok && m.GetPort() <= 65535
}
