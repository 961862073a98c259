package controlplane

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/mesh"
)

// place is where connections are balanced: a node, and its zone.
type place struct{ node, zone string }

// reach is an address of a service, or a port of a shared address that leads to one of the service's.
type reach struct {
	at     netip.AddrPort
	answer *discoveryv1.Answer
}

// port is which of the service's ports it leads to.
func (r reach) port() uint16 { return cmp.Or(uint16(r.answer.GetServicePort()), r.at.Port()) }

func (v *service) has(port uint16) bool {
	return slices.ContainsFunc(v.GetPorts(), func(p *discoveryv1.ServicePort) bool { return uint16(p.GetPort()) == port })
}

// way is how the endpoints for an address are chosen, and for whom.
type way struct {
	local  bool // those on here's node alone
	ranges bool // the address is for the clients of the service's source ranges alone
	here   place
}

// describe is a service as this node's proxy is to know it, at the addresses that it was asked for: as one Service, or as
// several where these do not lead to the same endpoints.
//
// As kube-proxy has it, internalTrafficPolicy restricts cluster IPs alone, and externalTrafficPolicy nothing that comes from
// inside the cluster. Behind another node's NodePort that node chooses.
func (s *state) describe(v *service, at []reach) []mesh.Service {
	var ways []way
	by := map[way][]reach{}
	for _, r := range at {
		w := s.way(v, r)
		if by[w] == nil {
			ways = append(ways, w)
		}
		by[w] = append(by[w], r)
	}
	var out []mesh.Service
	for _, w := range ways {
		out = append(out, v.reached(w, by[w]))
	}
	return out
}

func (s *state) way(v *service, r reach) way {
	ip := r.at.Addr().AsSlice()
	has := func(all [][]byte) bool {
		return slices.ContainsFunc(all, func(b []byte) bool { return slices.Equal(b, ip) })
	}
	w := way{here: place{s.node, s.zone}}
	switch {
	case has(v.GetClusterIps()):
		w.local = v.GetInternalPolicy() == discoveryv1.Service_TRAFFIC_POLICY_LOCAL
	case r.answer.GetServicePort() != 0 && v.hinted():
		w.here = place{r.answer.GetNode(), r.answer.GetZone()}
	default:
		w.ranges = len(v.GetSourceRanges()) > 0 && has(v.GetLoadBalancerIps())
	}
	return w
}

// hinted reports whether it matters where endpoints are chosen.
func (v *service) hinted() bool {
	for _, e := range v.endpoints {
		if len(e.GetHintZones())+len(e.GetHintNodes()) > 0 {
			return true
		}
	}
	return false
}

// reached is the service at some of its addresses. Endpoints are chosen for each port and family by itself, as kube-proxy does:
// those that do not serve a port say nothing of those that do.
func (v *service) reached(w way, at []reach) mesh.Service {
	namespace, name, _ := strings.Cut(v.GetKey(), "/")
	out := mesh.Service{Namespace: namespace, Name: name, Addrs: []netip.Addr{}, Ports: []mesh.Port{}, Affinity: v.GetAffinitySeconds()}
	ports := map[uint16][]netip.AddrPort{}
	for _, r := range at {
		if r.at.Port() == 0 {
			out.Addrs = append(out.Addrs, r.at.Addr())
			continue
		}
		ports[r.port()] = append(ports[r.port()], r.at)
	}
	if w.ranges {
		out.Sources = prefixes(v.GetSourceRanges())
	}
	choose := near
	if w.local {
		choose = onNode
	}
	all := v.sorted()
	for _, p := range v.GetPorts() {
		number := uint16(p.GetPort())
		if len(out.Addrs) == 0 && len(ports[number]) == 0 {
			continue
		}
		port := mesh.Port{Port: number, Name: p.GetName(), Protocol: protocol(p.GetProtocol()), Endpoints: []mesh.Endpoint{}, At: ports[number]}
		for _, size := range []int{4, 16} {
			for _, e := range choose(filter(all, func(e *discoveryv1.Endpoint) bool { return len(e.GetIp()) == size && portOf(e, p) > 0 }), w.here) {
				a, _ := netip.AddrFromSlice(e.GetIp())
				port.Endpoints = append(port.Endpoints, mesh.Endpoint{Addr: netip.AddrPortFrom(a.Unmap(), portOf(e, p)), Workload: e.GetWorkload()})
			}
		}
		out.Ports = append(out.Ports, port)
	}
	return out
}

func prefixes(all []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range all {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func (v *service) sorted() []*discoveryv1.Endpoint {
	all := make([]*discoveryv1.Endpoint, 0, len(v.endpoints))
	for _, e := range v.endpoints {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *discoveryv1.Endpoint) int { return strings.Compare(a.GetId(), b.GetId()) })
	return all
}

// portOf is where e serves p; 0: it does not.
func portOf(e *discoveryv1.Endpoint, p *discoveryv1.ServicePort) uint16 {
	for _, ep := range e.GetPorts() {
		if ep.GetName() == p.GetName() {
			return uint16(ep.GetPort())
		}
	}
	return 0
}

// onNode are those that a Service for its own node alone may use: whatever their hints say.
func onNode(all []*discoveryv1.Endpoint, here place) []*discoveryv1.Endpoint {
	return usable(filter(all, func(e *discoveryv1.Endpoint) bool { return e.GetNode() == here.node }))
}

// usable are those that are ready, or where there are none those that are going away and still serve.
func usable(all []*discoveryv1.Endpoint) []*discoveryv1.Endpoint {
	if ready := filter(all, (*discoveryv1.Endpoint).GetReady); len(ready) > 0 {
		return ready
	}
	return filter(all, func(e *discoveryv1.Endpoint) bool { return e.GetServing() && e.GetTerminating() })
}

// near are those that are usable, and of them those whose hints fit here, if all have hints: hints of nodes before hints of
// zones. Where none fits, hints are passed over, and so they are of endpoints that are going away.
func near(all []*discoveryv1.Endpoint, here place) []*discoveryv1.Endpoint {
	some := usable(all)
	if len(some) == 0 || !some[0].GetReady() {
		return some
	}
	fits := func(hints func(*discoveryv1.Endpoint) []string, mine string) []*discoveryv1.Endpoint {
		if mine == "" || slices.ContainsFunc(some, func(e *discoveryv1.Endpoint) bool { return len(hints(e)) == 0 }) {
			return nil
		}
		return filter(some, func(e *discoveryv1.Endpoint) bool { return slices.Contains(hints(e), mine) })
	}
	if on := fits((*discoveryv1.Endpoint).GetHintNodes, here.node); len(on) > 0 {
		return on
	}
	if in := fits((*discoveryv1.Endpoint).GetHintZones, here.zone); len(in) > 0 {
		return in
	}
	return some
}

func filter(all []*discoveryv1.Endpoint, keep func(*discoveryv1.Endpoint) bool) []*discoveryv1.Endpoint {
	var out []*discoveryv1.Endpoint
	for _, e := range all {
		if keep(e) {
			out = append(out, e)
		}
	}
	return out
}
