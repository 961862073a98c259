package controlplane

import (
	"net/netip"
	"slices"
	"strings"

	"conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/mesh"
)

// place is where connections are balanced: a node, and its zone.
type place struct{ node, zone string }

// describe is a service as this node's proxy is to know it: as one Service, or as two where its cluster IPs lead to other
// endpoints than its other addresses. A service without an object is none.
//
// As kube-proxy has it, internalTrafficPolicy restricts cluster IPs alone, and externalTrafficPolicy nothing that comes from
// inside the cluster.
func (s *state) describe(key string, v *service) []mesh.Service {
	if v.Service == nil {
		return nil
	}
	here, inside, outside := place{s.node, s.zone}, addrs(v.GetClusterIps()), addrs(v.GetExternalIps())
	if v.GetInternalPolicy() != discoveryv1.Service_TRAFFIC_POLICY_LOCAL {
		return []mesh.Service{v.reached(key, append(inside, outside...), func(p []*discoveryv1.Endpoint) []*discoveryv1.Endpoint { return near(p, here) })}
	}
	out := []mesh.Service{v.reached(key, inside, func(p []*discoveryv1.Endpoint) []*discoveryv1.Endpoint { return onNode(p, here) })}
	if len(outside) > 0 {
		out = append(out, v.reached(key, outside, func(p []*discoveryv1.Endpoint) []*discoveryv1.Endpoint { return near(p, here) }))
	}
	return out
}

// reached is the service at some of its addresses, with the endpoints that choose takes. It is asked for each port and family
// by itself, as kube-proxy does: endpoints that do not serve a port say nothing of those that do.
func (v *service) reached(key string, at []netip.Addr, choose func([]*discoveryv1.Endpoint) []*discoveryv1.Endpoint) mesh.Service {
	namespace, name, _ := strings.Cut(key, "/")
	out := mesh.Service{Namespace: namespace, Name: name, Addrs: at, Ports: []mesh.Port{}, Affinity: v.GetAffinitySeconds()}
	all := v.sorted()
	for _, p := range v.GetPorts() {
		port := mesh.Port{Port: uint16(p.GetPort()), Name: p.GetName(), Protocol: protocol(p.GetProtocol()), Endpoints: []mesh.Endpoint{}}
		for _, size := range []int{4, 16} {
			for _, e := range choose(filter(all, func(e *discoveryv1.Endpoint) bool { return len(e.GetIp()) == size && portOf(e, p) > 0 })) {
				a, _ := netip.AddrFromSlice(e.GetIp())
				port.Endpoints = append(port.Endpoints, mesh.Endpoint{Addr: netip.AddrPortFrom(a.Unmap(), portOf(e, p)), Workload: e.GetWorkload()})
			}
		}
		out.Ports = append(out.Ports, port)
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
