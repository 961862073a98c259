package discovery

import (
	"net/netip"
	"slices"
)

// hostPort is a port of a node's addresses that a pod on the node has asked for.
type hostPort struct {
	node string
	port uint32
}

// binding is one host port of a pod: it leads to a port of the pod's own address of the same family.
type binding struct {
	port, target uint32
	at           netip.Addr // the only address of the node at which it is; invalid: all
}

func (x *Index) claimNodePorts(s *entry, old, r *service) {
	change := func(from *service, f func([]*entry, *entry) []*entry) {
		if from == nil {
			return
		}
		for _, p := range from.msg.Ports {
			if p.NodePort == 0 {
				continue
			}
			if x.nodePorts[p.NodePort] = f(x.nodePorts[p.NodePort], s); len(x.nodePorts[p.NodePort]) == 0 {
				delete(x.nodePorts, p.NodePort)
			}
			x.askPort(p.NodePort)
		}
	}
	change(old, without)
	change(r, with)
}

// claimHostPorts moves w's claims from the host ports of old to those of now.
func (x *Index) claimHostPorts(w *workload, old, now *pod) {
	if old.node == now.node && old.claims() == now.claims() && slices.Equal(old.addrs, now.addrs) && slices.Equal(old.bindings, now.bindings) {
		return
	}
	if old.claims() {
		for _, b := range old.bindings {
			k := hostPort{old.node, b.port}
			if x.hostPorts[k] = slices.DeleteFunc(x.hostPorts[k], func(o *workload) bool { return o == w }); len(x.hostPorts[k]) == 0 {
				delete(x.hostPorts, k)
			}
			x.askPort(b.port)
		}
	}
	if now.claims() {
		for _, b := range now.bindings {
			k := hostPort{now.node, b.port}
			x.hostPorts[k] = append(x.hostPorts[k], w)
			x.askPort(b.port)
		}
	}
}

// hostPort is the pod that has the port at a node's address, and its own port.
func (x *Index) hostPort(k hostPort, a netip.Addr) (*workload, uint32) {
	for _, w := range slices.Backward(x.hostPorts[k]) {
		if !slices.ContainsFunc(w.rec.addrs, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			continue
		}
		for _, b := range w.rec.bindings {
			if b.port == k.port && (!b.at.IsValid() || b.at == a) {
				return w, b.target
			}
		}
	}
	return nil, 0
}

// askPort has all answered again who ask about the port.
func (x *Index) askPort(port uint32) {
	for st := range x.portSubs[port] {
		st.askPort(port)
	}
}

// join and leave keep account of the nodes that have an address.
func (a *address) join(node string, internal bool) {
	a.hosts++
	if i, there := slices.BinarySearch(a.nodes, node); internal && !there {
		a.nodes = slices.Insert(a.nodes, i, node)
	}
}

func (a *address) leave(node string) {
	a.hosts--
	if i, there := slices.BinarySearch(a.nodes, node); there {
		a.nodes = slices.Delete(a.nodes, i, i+1)
	}
}
