package discovery

import (
	"net/netip"
	"testing"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

func TestExtend(t *testing.T) {
	addr := netip.MustParseAddr
	s := &node.Snapshot{Node: "n1", Workloads: []mesh.Workload{{UID: "b", Node: "n1", Meshed: true, Addrs: []netip.Addr{addr("10.0.0.2")}}}}
	Extend(s, &View{
		Workloads: []mesh.Workload{
			{UID: "c", Node: "n2", Meshed: true, Addrs: []netip.Addr{addr("10.0.1.3")}},
			{UID: "b", Node: "n1", Addrs: []netip.Addr{addr("10.0.0.2")}},                  // this node knows it
			{UID: "old", Node: "n1", Addrs: []netip.Addr{addr("10.0.0.9")}},                // and that this one has gone
			{UID: "a", Node: "n2", Addrs: []netip.Addr{addr("10.0.1.1"), addr("fd00::1")}}, // not meshed
		},
		Services: []mesh.Service{{Namespace: "shop", Name: "web"}, {Namespace: "db", Name: "x"}},
		Nobody:   []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:80"), netip.MustParseAddrPort("10.0.0.2:0"), netip.MustParseAddrPort("192.0.2.1:0")},
		ByPort:   []netip.Addr{addr("192.0.2.7"), addr("192.0.2.5")},
	})
	if !s.OnDemand || len(s.Workloads) != 3 || s.Workloads[0].UID != "a" || s.Workloads[1].UID != "b" || s.Workloads[2].UID != "c" || !s.Workloads[1].Meshed {
		t.Errorf("workloads %+v", s.Workloads)
	}
	if len(s.Services) != 2 || s.Services[0].Namespace != "db" {
		t.Errorf("services %+v", s.Services)
	}
	if len(s.Nobody) != 2 || s.Nobody[0].String() != "192.0.2.1:0" || s.Nobody[1].String() != "192.0.2.7:80" || len(s.ByPort) != 2 || s.ByPort[0] != addr("192.0.2.5") {
		t.Errorf("nobody %v", s.Nobody)
	}
}
