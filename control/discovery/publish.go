package discovery

import (
	"slices"
	"strings"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/mesh"

	"google.golang.org/protobuf/proto"
)

// putPod takes a pod in. Another pod of the same name ends the one before.
func (x *Index) putPod(r *pod) {
	w := x.workloads[r.name]
	if w != nil && w.rec.uid != r.uid {
		x.removePod(r.name)
		w = nil
	}
	old := &pod{}
	if w == nil {
		w = &workload{}
		x.workloads[r.name] = w
		member(x.namespaces, r.name.Namespace).pods[w] = struct{}{}
	} else {
		old = w.rec
	}
	w.rec = r
	if old.node != r.node {
		x.leaveNode(w, old.node)
		if r.node != "" {
			member(x.nodes, r.node).pods[w] = struct{}{}
		}
	}
	x.publish(w)
	x.claimPod(w, old, r)
	x.claimHostPorts(w, old, r)
}

func (x *Index) removePod(n Name) {
	w := x.workloads[n]
	if w == nil {
		return
	}
	delete(x.workloads, n)
	delete(member(x.namespaces, n.Namespace).pods, w)
	x.release(x.namespaces, n.Namespace)
	x.leaveNode(w, w.rec.node)
	w.msg = nil
	x.claimPod(w, w.rec, &pod{})
	x.claimHostPorts(w, w.rec, &pod{})
}

func (x *Index) leaveNode(w *workload, node string) {
	if g := x.nodes[node]; g != nil {
		delete(g.pods, w)
		x.release(x.nodes, node)
	}
}

// claims reports whether p's addresses are its own.
func (p *pod) claims() bool { return p.uid != "" && !p.hostNetwork && !p.ended }

// claimPod moves w's claims from the addresses of old to those of now, and looks again at the endpoints at both.
func (x *Index) claimPod(w *workload, old, now *pod) {
	for _, a := range old.addrs {
		kept := slices.Contains(now.addrs, a)
		if old.claims() && !(now.claims() && kept) {
			x.claim(a, func(c *address) { c.pods = slices.DeleteFunc(c.pods, func(o *workload) bool { return o == w }) })
			x.settleAt(a)
		}
		if old.hostNetwork && !(kept && old.ended == now.ended) {
			x.settleAt(a)
		}
	}
	for _, a := range now.addrs {
		switch known := old.uid != "" && slices.Contains(old.addrs, a); {
		case now.claims() && !(old.claims() && known):
			x.claim(a, func(c *address) { c.pods = append(c.pods, w) })
			x.settleAt(a)
		case now.hostNetwork && !known:
			x.settleAt(a)
		}
	}
}

// publish makes w's message anew, and tells those who have it if it has changed.
func (x *Index) publish(w *workload) {
	r := w.rec
	if r.hostNetwork || r.ended {
		w.msg = nil
		return
	}
	var ns kube.Said
	if n, ok := x.records[Namespaces][Name{Name: r.name.Namespace}].(*namespace); ok {
		ns = n.said
	}
	set := kube.Settle(r.said, ns, x.policy)
	m := &discoveryv1.Workload{Uid: r.uid, Namespace: r.name.Namespace, Name: r.name.Name, ServiceAccount: r.account, Owner: r.owner,
		Node: r.node, Ips: addrBytes(r.addrs), Meshed: set.Meshed, Enrolment: r.enrolment(), MtlsMode: modes[set.Mode],
		DownMode: downs[set.Down], Zone: x.nodeRecord(r.node).zone}
	if proto.Equal(m, w.msg) {
		return
	}
	w.msg, w.version = m, x.stamp()
	for _, b := range r.bindings { // some may ask about another node: they drop it
		for st := range x.portSubs[b.port] {
			st.mark(w)
		}
	}
	for _, a := range r.addrs {
		c := x.addrs[a]
		if c == nil {
			continue
		}
		for _, st := range c.watch {
			st.mark(w)
		}
		for _, b := range c.behind {
			for st := range b.service.streams {
				st.mark(w)
			}
		}
	}
}

// A word that is not known is taken for the safer one.
var (
	modes = map[mesh.Mode]discoveryv1.Workload_MtlsMode{mesh.Permissive: discoveryv1.Workload_MTLS_MODE_PERMISSIVE,
		mesh.Strict: discoveryv1.Workload_MTLS_MODE_STRICT}
	downs = map[mesh.Down]discoveryv1.Workload_DownMode{mesh.DownClosed: discoveryv1.Workload_DOWN_MODE_CLOSED,
		mesh.DownOpen: discoveryv1.Workload_DOWN_MODE_OPEN}
)

func (x *Index) entry(n Name) *entry {
	s := x.services[n]
	if s == nil {
		s = &entry{name: n, endpoints: map[string]*endpoint{}, streams: map[*Stream]struct{}{}}
		x.services[n] = s
	}
	return s
}

func (x *Index) forgetEntry(s *entry) {
	if s.rec == nil && len(s.endpoints) == 0 && len(s.streams) == 0 {
		delete(x.services, s.name)
	}
}

// putService takes a service in, or, nil, away.
func (x *Index) putService(n Name, r *service) {
	s := x.entry(n)
	old := s.rec
	if old != nil && r != nil && proto.Equal(old.msg, r.msg) {
		return
	}
	s.rec, s.version = r, x.stamp()
	for st := range s.streams {
		st.service(s).described = true
		st.poke()
	}
	x.claimVIPs(s, old, r)
	x.claimNodePorts(s, old, r)
	if old == nil || r == nil || !slices.EqualFunc(old.msg.Ports, r.msg.Ports, sameDeclaration) {
		for _, e := range s.endpoints { // what is declared of their ports is part of their addresses' answers
			x.touchAddress(e.addr, x.addrs[e.addr])
		}
	}
	x.forgetEntry(s)
}

func sameDeclaration(a, b *discoveryv1.ServicePort) bool {
	return a.Name == b.Name && a.Protocol == b.Protocol
}

func (x *Index) claimVIPs(s *entry, old, r *service) {
	if old != nil {
		for _, a := range old.vips {
			x.claim(a, func(c *address) { c.services = without(c.services, s) })
		}
	}
	if r != nil {
		for _, a := range r.vips {
			x.claim(a, func(c *address) { c.services = with(c.services, s) })
		}
	}
}

// with is a list in the order of keys with s in it, without one without s: what claims the same is told apart by that order.
func with(list []*entry, s *entry) []*entry {
	i, _ := slices.BinarySearchFunc(list, s, func(a, b *entry) int { return strings.Compare(a.name.String(), b.name.String()) })
	return slices.Insert(list, i, s)
}

func without(list []*entry, s *entry) []*entry {
	return slices.DeleteFunc(list, func(o *entry) bool { return o == s })
}
