package table

import (
	"net/netip"
	"testing"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// A node's address has several Services by their NodePorts, and what else listens there.
func TestPortsOfASharedAddress(t *testing.T) {
	web := mesh.Service{Namespace: "shop", Name: "web", Ports: []mesh.Port{
		{Port: 443, At: []netip.AddrPort{ap("192.0.2.1:30443"), ap("192.0.2.2:30443")}, Endpoints: []mesh.Endpoint{{Addr: ap("10.0.0.5:8443")}}},
		{Port: 80, At: []netip.AddrPort{ap("[::ffff:192.0.2.1]:30080")}, Endpoints: []mesh.Endpoint{{Addr: ap("10.0.0.5:8080")}}},
	}}
	db := mesh.Service{Namespace: "shop", Name: "db", Addrs: []netip.Addr{ad("10.96.0.1")}, Ports: []mesh.Port{{Port: 5432, At: []netip.AddrPort{ap("192.0.2.1:30432")}}}}
	tab := New(&node.Snapshot{OnDemand: true, Services: []mesh.Service{web, db}, ByPort: []netip.Addr{ad("192.0.2.1"), ad("192.0.2.2")},
		Nobody: []netip.AddrPort{ap("192.0.2.1:22"), ap("198.51.100.1:0")}})
	for dst, want := range map[string]uint16{
		"192.0.2.1:30443": 443, "192.0.2.2:30443": 443, "192.0.2.1:30080": 80, "[::ffff:192.0.2.1]:30080": 80, "192.0.2.1:30432": 5432,
		"10.96.0.1:5432": 5432, "10.96.0.1:30432": 0, "192.0.2.2:30080": 0, "192.0.2.1:22": 0, "192.0.2.1:0": 0,
	} {
		p, svc := tab.Service(ap(dst))
		if got := uint16(0); p != nil {
			if got = p.Port; got != want || svc != p.Service || got == 80 && p.Endpoints(ad("192.0.2.1"))[0].Addr != ap("10.0.0.5:8080") {
				t.Errorf("%s is %s's port %d, want %d", dst, svc.Label, got, want)
			}
		} else if want != 0 {
			t.Errorf("%s is no port", dst)
		}
	}
	for dst, want := range map[string]bool{
		"192.0.2.1:30443": true, "192.0.2.1:22": true, "192.0.2.1:23": false, "192.0.2.1:0": true, "192.0.2.2:30080": false,
		"198.51.100.1:0": true, "198.51.100.1:80": true, "198.51.100.2:80": false, "10.96.0.1:1": true, "[::ffff:192.0.2.1]:22": true,
	} {
		if got := tab.Covers(ap(dst)); got != want {
			t.Errorf("Covers(%s) = %v", dst, got)
		}
	}
}

func TestSources(t *testing.T) {
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("198.51.100.7/32")}
	tab := New(&node.Snapshot{Services: []mesh.Service{
		{Name: "some", Addrs: []netip.Addr{ad("203.0.113.1")}, Sources: prefixes}, {Name: "all", Addrs: []netip.Addr{ad("203.0.113.2")}},
	}})
	_, some := tab.Service(ap("203.0.113.1:80"))
	_, all := tab.Service(ap("203.0.113.2:80"))
	for a, want := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "198.51.100.7": true, "198.51.100.8": false, "192.0.2.1": false, "fd00::1": true} {
		if some.Takes(ad(a)) != want || !all.Takes(ad(a)) {
			t.Errorf("%s: %v, want %v; without ranges %v", a, !want, want, all.Takes(ad(a)))
		}
	}
}
