package discovery

import (
	"net/netip"
	"slices"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
)

// answer is whose an address is, what that leads to, and in which version it came to be so.
func (x *Index) answer(a netip.Addr, port uint32) (m *discoveryv1.Answer, leads *entry, w *workload, version uint64) {
	m = &discoveryv1.Answer{Address: &discoveryv1.Address{Ip: a.AsSlice(), Port: port}, Kind: discoveryv1.Answer_KIND_NOBODY}
	c := x.addrs[a]
	if c == nil {
		return m, nil, nil, x.version
	}
	services := c.virtual(a)
	m.ByPort = len(c.nodes) > 0 || len(services) > 1
	if leads, w = x.atNode(m, c, a, port); leads == nil && w == nil {
		if leads = c.service(services, port); leads != nil {
			m.Node, m.Zone = "", ""
		}
	}
	switch {
	case leads != nil:
		m.Kind, m.Service = discoveryv1.Answer_KIND_SERVICE, leads.name.String()
	case w != nil:
		m.Kind, m.Workload = discoveryv1.Answer_KIND_WORKLOAD, w.rec.uid
	case len(c.pods) > 0:
		w = c.pods[len(c.pods)-1]
		m.Kind, m.Workload, m.Declared = discoveryv1.Answer_KIND_WORKLOAD, w.rec.uid, declared(c.behind)
	case c.hosts > 0:
		m.Kind = discoveryv1.Answer_KIND_NODE
	}
	version = c.version
	if len(c.nodes) > 0 && port != 0 { // NodePorts and host ports come and go without a change of the address
		version = x.version
	}
	return m, leads, w, version
}

// virtual are the services whose address it is: the one that the cluster has given it to; without one, and where it is no pod's own
// either, those that say it is theirs. For whoever may make a Service in some namespace may say so of any address, and would have
// the connections of all others (CVE-2020-8554).
func (a *address) virtual(at netip.Addr) []*entry {
	for i, s := range a.services {
		if slices.Contains(s.rec.vips[:s.rec.own], at) {
			return a.services[i : i+1]
		}
	}
	if len(a.pods) > 0 {
		return nil
	}
	return a.services
}

// service is the one of services that has the port, or, unless other ports are a node's, the first one; nil: none.
func (a *address) service(services []*entry, port uint32) *entry {
	for _, s := range services {
		if port != 0 && slices.ContainsFunc(s.rec.msg.Ports, func(p *discoveryv1.ServicePort) bool { return p.Port == port }) {
			return s
		}
	}
	if len(services) == 0 || len(a.nodes) > 0 && port != 0 {
		return nil
	}
	return services[0]
}

// atNode is whose NodePort or host port the port of a node's address is.
func (x *Index) atNode(m *discoveryv1.Answer, c *address, a netip.Addr, port uint32) (*entry, *workload) {
	if len(c.nodes) == 0 || port == 0 {
		return nil, nil
	}
	m.Node, m.Zone = c.nodes[0], x.nodeRecord(c.nodes[0]).zone
	for _, s := range x.nodePorts[port] {
		if !slices.ContainsFunc(s.rec.msg.ClusterIps, func(ip []byte) bool { return len(ip) == len(a.AsSlice()) }) {
			continue // it does not serve the family
		}
		i := slices.IndexFunc(s.rec.msg.Ports, func(p *discoveryv1.ServicePort) bool { return p.NodePort == port })
		m.ServicePort = s.rec.msg.Ports[i].Port
		return s, nil
	}
	for _, n := range c.nodes {
		if w, target := x.hostPort(hostPort{n, port}, a); w != nil {
			m.Node, m.Zone, m.WorkloadPort = n, x.nodeRecord(n).zone, target
			return nil, w
		}
	}
	return nil, nil
}

// declared is what services say of the ports of their endpoints at one address.
func declared(behind []ref) []*discoveryv1.DeclaredPort {
	by := map[uint32]*discoveryv1.DeclaredPort{}
	for _, r := range behind {
		if r.service.rec == nil {
			continue
		}
		for _, p := range r.service.endpoints[r.id].msg.GetPorts() {
			i := slices.IndexFunc(r.service.rec.msg.Ports, func(sp *discoveryv1.ServicePort) bool { return sp.Name == p.Name })
			if i < 0 {
				continue
			}
			d := &discoveryv1.DeclaredPort{Port: p.Port, Protocol: r.service.rec.msg.Ports[i].Protocol, Service: r.service.name.String()}
			if have := by[p.Port]; have == nil || d.Service < have.Service {
				by[p.Port] = d
			}
		}
	}
	var out []*discoveryv1.DeclaredPort
	for _, d := range by {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b *discoveryv1.DeclaredPort) int { return int(a.Port) - int(b.Port) })
	return out
}
