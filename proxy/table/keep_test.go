package table

import (
	"net/netip"
	"testing"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// What an earlier snapshot said of an address that is of interest holds until a later one says something, and no longer.
func TestKeep(t *testing.T) {
	var (
		svc, pod, out, shared = ap("10.96.0.1:0"), ap("10.0.0.5:0"), ap("198.51.100.1:0"), ap("192.0.2.1:0")
		taken, free           = ap("192.0.2.1:30080"), ap("192.0.2.1:22")
	)
	asked := []netip.AddrPort{svc, pod, out, shared, taken, free}
	old := New(&node.Snapshot{OnDemand: true,
		Workloads: []mesh.Workload{{UID: "w", Name: "web", Addrs: []netip.Addr{pod.Addr()}, Meshed: true}, {UID: "x", Addrs: []netip.Addr{ad("10.0.0.9")}}},
		Services: []mesh.Service{{Namespace: "shop", Name: "web", Addrs: []netip.Addr{svc.Addr()}, Ports: []mesh.Port{
			{Port: 80, Protocol: mesh.HTTP1, At: []netip.AddrPort{taken}, Endpoints: []mesh.Endpoint{{Addr: ap("10.0.0.5:8080"), Workload: "w"}}}}}},
		Nobody: []netip.AddrPort{out, free}, ByPort: []netip.Addr{shared.Addr()},
	})
	empty := &node.Snapshot{OnDemand: true}
	first := New(empty)
	first.Keep(old, asked)
	second := New(empty) // of an agent that ends before it knows anything
	second.Keep(first, asked)
	for _, q := range asked {
		if !second.Covers(q) {
			t.Errorf("%s is not known", q)
		}
	}
	if p, _ := second.Service(ap("10.96.0.1:80")); p == nil || p.Service.Label != "shop/web" || p.Endpoints(svc.Addr())[0].Workload.UID != "w" {
		t.Errorf("the Service is %+v", p)
	}
	if p, _ := second.Service(taken); p == nil || p.Port != 80 {
		t.Errorf("the Service's port of the shared address is %+v", p)
	}
	if w := second.Workload(pod.Addr()); w == nil || !w.Meshed {
		t.Errorf("the workload is %+v", w)
	}
	if got := second.Declared(ap("10.0.0.5:8080")); got != mesh.HTTP1 {
		t.Errorf("the workload's port is declared as %s", got)
	}
	if second.Workload(ad("10.0.0.9")) != nil || second.Covers(ap("192.0.2.1:23")) || second.Covers(ap("203.0.113.1:80")) {
		t.Error("an address that nobody asked for is kept, or one of which nobody knew")
	}

	third := New(&node.Snapshot{OnDemand: true, Nobody: []netip.AddrPort{svc, shared}, Workloads: []mesh.Workload{{UID: "v", Addrs: []netip.Addr{pod.Addr()}}}})
	third.Keep(second, asked)
	if p, s := third.Service(ap("10.96.0.1:80")); p != nil || s != nil || third.Workload(pod.Addr()).UID != "v" || third.ByPort(shared.Addr()) {
		t.Error("what was said before wins over what is said now")
	}
	if !third.Covers(out) {
		t.Error("of what nothing is said yet, nothing is known any more")
	}

	// A snapshot of everything says that there is no more; and before the first one nothing was said.
	whole := New(&node.Snapshot{})
	whole.Keep(old, asked)
	begun := New(empty)
	begun.Keep(NewLive().Load(), asked)
	if whole.Workload(pod.Addr()) != nil || begun.Covers(pod) {
		t.Error("kept where there is nothing to wait for, or from where there was nothing")
	}
}

// An endpoint of which it is not said who it is gets nothing, not plaintext.
func TestEndpointWithoutItsWorkload(t *testing.T) {
	web := mesh.Service{Addrs: []netip.Addr{ad("10.96.0.1")}, Ports: []mesh.Port{{Port: 80, Endpoints: []mesh.Endpoint{
		{Addr: ap("10.0.0.5:8080"), Workload: "w"}, {Addr: ap("10.0.0.6:8080"), Workload: "lost"}, {Addr: ap("203.0.113.1:80")}}}}}
	p, _ := New(&node.Snapshot{OnDemand: true, Services: []mesh.Service{web}, Workloads: []mesh.Workload{{UID: "w"}}}).Service(ap("10.96.0.1:80"))
	eps := p.Endpoints(ad("10.96.0.1"))
	if len(eps) != 2 || eps[0].Workload == nil || eps[1].Addr != ap("203.0.113.1:80") {
		t.Errorf("endpoints %+v", eps)
	}
}
