package discovery

import (
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"

	"google.golang.org/protobuf/proto"
)

// endpoint is one address behind a service, said by one slice or, while it moves, by several.
type endpoint struct {
	addr    netip.Addr
	sources []source
	msg     *discoveryv1.Endpoint // nil: withheld, since the pod that it names is not known to have the address
	pod     *workload             // whose identity it has; nil: none
	version uint64
}

type source struct {
	slice *slice
	target
}

func (t *target) id() string {
	if t.uid == "" {
		return t.addr.String()
	}
	return t.addr.String() + "/" + t.uid
}

func (t *target) equal(o *target) bool {
	return t.addr == o.addr && t.pod == o.pod && t.uid == o.uid && t.ready == o.ready && t.serving == o.serving &&
		t.terminating == o.terminating && t.node == o.node && t.zone == o.zone && t.hostname == o.hostname &&
		slices.Equal(t.hintZones, o.hintZones) && slices.Equal(t.hintNodes, o.hintNodes)
}

// putSlice takes a slice in the place of another; either may be nil. Only endpoints in which they differ are looked at.
func (x *Index) putSlice(old, now *slice) {
	if old != nil && now != nil && old.service != now.service {
		x.putSlice(old, nil)
		old = nil
	}
	if old == nil {
		old = &slice{}
	}
	if now == nil {
		now = &slice{service: old.service}
	}
	if len(old.endpoints) == 0 && len(now.endpoints) == 0 {
		return
	}
	s := x.entry(now.service)
	samePorts := slices.EqualFunc(old.ports, now.ports, samePort)
	before := make(map[string]*target, len(old.endpoints))
	for i := range old.endpoints {
		before[old.endpoints[i].id()] = &old.endpoints[i]
	}
	for i := range now.endpoints {
		t := &now.endpoints[i]
		id := t.id()
		was := before[id]
		delete(before, id)
		x.source(s, id, old, &source{slice: now, target: *t}, was != nil && samePorts && was.equal(t))
	}
	for id := range before {
		x.source(s, id, old, nil, false)
	}
	x.forgetEntry(s)
}

// source puts what a slice says of an endpoint in the place of what the slice before it said.
func (x *Index) source(s *entry, id string, old *slice, now *source, same bool) {
	e := s.endpoints[id]
	if e == nil {
		e = &endpoint{addr: now.addr}
		s.endpoints[id] = e
		c := x.at(e.addr)
		c.behind = append(c.behind, ref{s, id})
	}
	e.sources = slices.DeleteFunc(e.sources, func(o source) bool { return o.slice == old || now != nil && o.slice == now.slice })
	if now != nil { // in the order of names, so that replicas of the controller agree
		i, _ := slices.BinarySearchFunc(e.sources, now.slice.name.Name, func(o source, name string) int { return strings.Compare(o.slice.name.Name, name) })
		e.sources = slices.Insert(e.sources, i, *now)
	}
	if len(e.sources) == 0 {
		x.dropEndpoint(s, id, e)
	} else if !same {
		x.settle(s, id, e)
	}
}

func (x *Index) dropEndpoint(s *entry, id string, e *endpoint) {
	delete(s.endpoints, id)
	x.claim(e.addr, func(c *address) {
		c.behind = slices.DeleteFunc(c.behind, func(r ref) bool { return r.service == s && r.id == id })
	})
	if e.msg != nil {
		s.removed = x.stamp()
		s.touch(id)
	}
}

// settleAt looks again at the endpoints at an address, since it has another owner.
func (x *Index) settleAt(a netip.Addr) {
	if c := x.addrs[a]; c != nil {
		for _, r := range c.behind {
			x.settle(r.service, r.id, r.service.endpoints[r.id])
		}
	}
}

// settle publishes an endpoint as its sources and the pod that it names make it, if that is a change.
func (x *Index) settle(s *entry, id string, e *endpoint) {
	was := e.msg
	m, w := x.message(id, e)
	if proto.Equal(m, was) && w == e.pod {
		return
	}
	e.msg, e.pod, e.version = m, w, x.stamp()
	if m == nil && was != nil {
		s.removed = e.version
	}
	if !slices.EqualFunc(was.GetPorts(), m.GetPorts(), samePort) { // what is declared of them is part of the address's answer
		x.touchAddress(e.addr, x.addrs[e.addr])
	}
	s.touch(id)
}

func samePort(a, b *discoveryv1.EndpointPort) bool { return a.Port == b.Port && a.Name == b.Name }

// touch tells the streams that have the service.
func (s *entry) touch(id string) {
	for st := range s.streams {
		st.service(s).endpoint(id, s)
		st.poke()
	}
}

func (x *Index) message(id string, e *endpoint) (*discoveryv1.Endpoint, *workload) {
	w, known := x.owner(&e.sources[0].target)
	if !known {
		return nil, nil
	}
	// An endpoint may be in two slices while it moves from one to the other: ready is what counts.
	first := &e.sources[0]
	for i := range e.sources {
		if e.sources[i].ready && !first.ready {
			first = &e.sources[i]
		}
	}
	m := &discoveryv1.Endpoint{Id: id, Ip: first.addr.AsSlice(), Ports: first.slice.ports, Ready: first.ready, Serving: first.serving,
		Terminating: first.terminating, Node: first.node, Zone: first.zone, HintZones: first.hintZones, HintNodes: first.hintNodes, Hostname: first.hostname}
	for i := range e.sources {
		if o := &e.sources[i]; o != first && o.ready == first.ready {
			m.Ports = union(m.Ports, o.slice.ports)
		}
	}
	if w != nil {
		m.Workload = w.rec.uid
	}
	return m, w
}

// owner is the workload that answers at the target, nil for none. It is not known while a pod that is named has not been
// seen with the address: to take it for nobody's could mean plaintext to a pod that must not get any.
func (x *Index) owner(t *target) (w *workload, known bool) {
	if t.uid != "" {
		p := x.workloads[t.pod]
		if p == nil || p.rec.uid != t.uid || p.rec.ended || !slices.Contains(p.rec.addrs, t.addr) {
			return nil, false
		}
		if p.rec.hostNetwork {
			return nil, true
		}
		return p, true
	}
	if c := x.addrs[t.addr]; c != nil && len(c.pods) > 0 {
		return c.pods[len(c.pods)-1], true
	}
	return nil, true
}

// union is a with what b has under other names; neither is changed.
func union(a, b []*discoveryv1.EndpointPort) []*discoveryv1.EndpointPort {
	out := a
	for _, p := range b {
		if !slices.ContainsFunc(a, func(o *discoveryv1.EndpointPort) bool { return o.Name == p.Name }) {
			out = append(slices.Clip(out), p)
		}
	}
	return out
}
