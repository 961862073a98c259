package controlplane

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/mesh"
)

// state is what the controller has told: the answers, and what they lead to.
type state struct {
	node, zone string
	epoch      string
	version    uint64 // 0: nothing, or a part of something
	partial    bool   // more of a version is to come

	answers   map[netip.AddrPort]*discoveryv1.Answer // port 0: of the whole address
	services  map[string]*service
	workloads map[string]*discoveryv1.Workload
}

type service struct {
	*discoveryv1.Service
	endpoints map[string]*discoveryv1.Endpoint // by id
}

func newState(node string) *state {
	return &state{
		node: node, answers: map[netip.AddrPort]*discoveryv1.Answer{}, services: map[string]*service{}, workloads: map[string]*discoveryv1.Workload{},
	}
}

// apply takes in a response. wants tells which addresses are still of interest.
func (s *state) apply(m *discoveryv1.WatchResponse, wants func(netip.AddrPort) bool) {
	if m.GetReset_() {
		clear(s.answers)
		clear(s.services)
		clear(s.workloads)
	}
	if l := m.GetLocality(); l != nil {
		s.zone = l.GetZone()
	}
	for _, w := range m.GetWorkloads() {
		s.workloads[w.GetUid()] = w
	}
	for _, v := range m.GetServices() {
		s.service(v.GetKey()).Service = v
	}
	for _, u := range m.GetEndpoints() {
		s.update(u)
	}
	for _, a := range m.GetAnswers() {
		if ip, ok := netip.AddrFromSlice(a.GetAddress().GetIp()); ok {
			if q := netip.AddrPortFrom(ip.Unmap(), uint16(a.GetAddress().GetPort())); wants(q) {
				s.answers[q] = a
			}
		}
	}
	s.epoch, s.version = m.GetPosition().GetEpoch(), m.GetPosition().GetVersion()
	if s.partial = m.GetMore(); s.partial {
		s.version = 0
		return
	}
	s.forget(wants)
}

// service is what is held of a service. Its endpoints may come first: of a version in several responses the descriptions are
// in the last ones.
func (s *state) service(key string) *service {
	v := s.services[key]
	if v == nil {
		v = &service{endpoints: map[string]*discoveryv1.Endpoint{}}
		s.services[key] = v
	}
	return v
}

func (s *state) update(u *discoveryv1.EndpointsUpdate) {
	v := s.service(u.GetService())
	if u.GetReplace() {
		clear(v.endpoints)
	}
	for _, e := range u.GetEndpoints() {
		v.endpoints[e.GetId()] = e
	}
	for _, id := range u.GetRemoved() {
		delete(v.endpoints, id)
	}
}

// forget drops the answers that nobody wants, and what no answer leads to any more: of its changes nothing is heard. What
// has come of a version that is not whole may yet be led to.
func (s *state) forget(wants func(netip.AddrPort) bool) {
	if s.partial {
		return
	}
	services, workloads := map[string]bool{}, map[string]bool{}
	for a, v := range s.answers {
		if !wants(a) {
			delete(s.answers, a)
			continue
		}
		services[v.GetService()], workloads[v.GetWorkload()] = true, true
	}
	for key, v := range s.services {
		if !services[key] {
			delete(s.services, key)
			continue
		}
		for _, e := range v.endpoints {
			workloads[e.GetWorkload()] = true
		}
	}
	for uid := range s.workloads {
		if !workloads[uid] {
			delete(s.workloads, uid)
		}
	}
}

// view is what the proxy is to know.
func (s *state) view() *discovery.View {
	v := &discovery.View{}
	for uid, w := range s.workloads {
		v.Workloads = append(v.Workloads, mesh.Workload{
			UID: uid, Namespace: w.GetNamespace(), Name: w.GetName(), ServiceAccount: w.GetServiceAccount(), Owner: w.GetOwner(),
			Node: w.GetNode(), Addrs: addrs(w.GetIps()), Meshed: reachable(w), Mode: modes[w.GetMtlsMode()], Down: downs[w.GetDownMode()],
		})
	}
	reached := map[string][]reach{}
	for _, a := range slices.SortedFunc(maps.Keys(s.answers), netip.AddrPort.Compare) { // equal states, equal views
		answer := s.answers[a]
		if a.Port() == 0 && answer.GetByPort() {
			v.ByPort = append(v.ByPort, a.Addr())
			continue
		}
		switch answer.GetKind() {
		case discoveryv1.Answer_KIND_SERVICE:
			r, key := reach{a, answer}, answer.GetService()
			if one := s.services[key]; one != nil && a.Port() != 0 && !one.has(r.port()) {
				v.Nobody = append(v.Nobody, a)
				continue
			}
			reached[key] = append(reached[key], r)
		case discoveryv1.Answer_KIND_WORKLOAD:
			v.Services = append(v.Services, s.ports(a, answer)...)
		case discoveryv1.Answer_KIND_NOBODY, discoveryv1.Answer_KIND_NODE:
			// A node's address, too: what stands there has no identity.
			v.Nobody = append(v.Nobody, a)
		default: // no answer, and the proxy does what the pod's mode says
		}
	}
	for key, at := range reached {
		if one := s.services[key]; one != nil && one.Service != nil {
			v.Services = append(v.Services, s.describe(one, at)...)
		}
	}
	return v
}

var modes = map[discoveryv1.Workload_MtlsMode]mesh.Mode{
	discoveryv1.Workload_MTLS_MODE_PERMISSIVE: mesh.Permissive, discoveryv1.Workload_MTLS_MODE_STRICT: mesh.Strict,
}

var downs = map[discoveryv1.Workload_DownMode]mesh.Down{
	discoveryv1.Workload_DOWN_MODE_CLOSED: mesh.DownClosed, discoveryv1.Workload_DOWN_MODE_OPEN: mesh.DownOpen,
}

var protocols = map[discoveryv1.Protocol]mesh.Protocol{
	discoveryv1.Protocol_PROTOCOL_HTTP1: mesh.HTTP1, discoveryv1.Protocol_PROTOCOL_HTTP2: mesh.HTTP2, discoveryv1.Protocol_PROTOCOL_OPAQUE: mesh.Opaque,
}

func protocol(p discoveryv1.Protocol) mesh.Protocol {
	if v, ok := protocols[p]; ok {
		return v
	}
	return mesh.Detect
}

// reachable reports whether w is to be reached by mTLS: its kernel was seen to steer it, or it takes nothing else.
func reachable(w *discoveryv1.Workload) bool {
	return w.GetMeshed() && (w.GetEnrolment() == discoveryv1.Workload_ENROLMENT_ENROLLED || w.GetMtlsMode() == discoveryv1.Workload_MTLS_MODE_STRICT)
}

func addrs(raw [][]byte) []netip.Addr {
	out := make([]netip.Addr, 0, len(raw))
	for _, b := range raw {
		if a, ok := netip.AddrFromSlice(b); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// ports are what is said of ports of a workload, as Services without an address: its own, when it is dialled by its own address,
// that Services declare; or the one behind a host port.
func (s *state) ports(a netip.AddrPort, answer *discoveryv1.Answer) []mesh.Service {
	if a.Port() != 0 {
		return s.hostPort(a, answer)
	}
	var out []mesh.Service
	for _, d := range answer.GetDeclared() {
		namespace, name, _ := strings.Cut(d.GetService(), "/")
		port := uint16(d.GetPort())
		out = append(out, mesh.Service{Namespace: namespace, Name: name, Addrs: []netip.Addr{}, Ports: []mesh.Port{{
			Port: port, Protocol: protocol(d.GetProtocol()),
			Endpoints: []mesh.Endpoint{{Addr: netip.AddrPortFrom(a.Addr(), port), Workload: answer.GetWorkload()}},
		}}})
	}
	return out
}

func (s *state) hostPort(a netip.AddrPort, answer *discoveryv1.Answer) []mesh.Service {
	w := s.workloads[answer.GetWorkload()]
	port := mesh.Port{Port: cmp.Or(uint16(answer.GetWorkloadPort()), a.Port()), Protocol: mesh.Detect, At: []netip.AddrPort{a}}
	for _, ip := range addrs(w.GetIps()) {
		if ip.Is4() == a.Addr().Is4() {
			port.Endpoints = []mesh.Endpoint{{Addr: netip.AddrPortFrom(ip, port.Port), Workload: w.GetUid()}}
			break
		}
	}
	namespace, name, _ := strings.Cut((&mesh.Workload{Namespace: w.GetNamespace(), Name: w.GetName(), Owner: w.GetOwner()}).Label(), "/")
	return []mesh.Service{{Namespace: namespace, Name: name, Addrs: []netip.Addr{}, Ports: []mesh.Port{port}}}
}
