package discovery

import (
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
)

// Lookup answers for addresses once.
func (x *Index) Lookup(addrs []netip.AddrPort) *discoveryv1.LookupResponse {
	x.mu.Lock()
	defer x.mu.Unlock()
	b := x.batch(0)
	for _, a := range addrs {
		m, leads, w, _ := x.answer(a.Addr(), uint32(a.Port()))
		b.answers = append(b.answers, m)
		if leads != nil {
			b.service(leads, 0)
		}
		b.workload(w, 0)
	}
	return &discoveryv1.LookupResponse{Position: x.position(), Answers: b.answers, Services: b.services, Endpoints: b.endpoints, Workloads: b.workloads}
}

func (x *Index) position() *discoveryv1.Position {
	return &discoveryv1.Position{Epoch: x.epoch, Version: x.version}
}

// ListServices is a page of at most n services with keys beyond after; last: there are no more.
func (x *Index) ListServices(namespace, after string, n int) (found []*discoveryv1.Service, at *discoveryv1.Position, last bool) {
	x.mu.Lock()
	for _, r := range x.records[Services] {
		if s := r.(*service); (namespace == "" || s.name.Namespace == namespace) && s.msg.Key > after {
			found = append(found, s.msg)
		}
	}
	at = x.position()
	x.mu.Unlock()
	slices.SortFunc(found, func(a, b *discoveryv1.Service) int { return strings.Compare(a.Key, b.Key) })
	return found[:min(n, len(found))], at, len(found) <= n
}

// ListWorkloads is a page of at most n workloads whose namespace/name is beyond after; last: there are no more.
func (x *Index) ListWorkloads(namespace, node, after string, n int) (found []*discoveryv1.Workload, at *discoveryv1.Position, last bool) {
	x.mu.Lock()
	for _, w := range x.workloads {
		if w.msg != nil && (namespace == "" || w.rec.name.Namespace == namespace) && (node == "" || w.rec.node == node) && w.rec.name.String() > after {
			found = append(found, w.msg)
		}
	}
	at = x.position()
	x.mu.Unlock()
	slices.SortFunc(found, func(a, b *discoveryv1.Workload) int { return strings.Compare(WorkloadKey(a), WorkloadKey(b)) })
	return found[:min(n, len(found))], at, len(found) <= n
}

// WorkloadKey is namespace/name.
func WorkloadKey(w *discoveryv1.Workload) string { return w.Namespace + "/" + w.Name }
