package discovery

import (
	"fmt"
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
			{UID: "old", Node: "n1", Meshed: true, Addrs: []netip.Addr{addr("10.0.0.2")}},  // and who has this one's address now
			{UID: "new", Node: "n1", Meshed: true, Addrs: []netip.Addr{addr("10.0.0.3")}},  // and has not heard of this one yet
			{UID: "a", Node: "n2", Addrs: []netip.Addr{addr("10.0.1.1"), addr("fd00::1")}}, // not meshed
		},
		Services: []mesh.Service{{Namespace: "shop", Name: "web"}, {Namespace: "db", Name: "x"}},
		Nobody:   []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:80"), netip.MustParseAddrPort("10.0.0.2:0"), netip.MustParseAddrPort("192.0.2.1:0")},
		ByPort:   []netip.Addr{addr("192.0.2.7"), addr("192.0.2.5")},
	})
	got := ""
	for _, w := range s.Workloads {
		got += fmt.Sprintf("%s on %s, %v; ", w.UID, w.Node, w.Meshed)
	}
	if want := "a on n2, false; b on n1, true; c on n2, true; new on n1, true; "; !s.OnDemand || got != want {
		t.Errorf("workloads %s", got)
	}
	if len(s.Services) != 2 || s.Services[0].Namespace != "db" {
		t.Errorf("services %+v", s.Services)
	}
	if len(s.Nobody) != 2 || s.Nobody[0].String() != "192.0.2.1:0" || s.Nobody[1].String() != "192.0.2.7:80" || len(s.ByPort) != 2 || s.ByPort[0] != addr("192.0.2.5") {
		t.Errorf("nobody %v", s.Nobody)
	}
}
