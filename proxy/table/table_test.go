package table

import (
	"net/netip"
	"testing"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
func ad(s string) netip.Addr     { return netip.MustParseAddr(s) }

func snapshot() *node.Snapshot {
	return &node.Snapshot{
		Version: 7, TrustDomain: "cluster.local", Node: "n1",
		Workloads: []mesh.Workload{
			{UID: "shop/old", Namespace: "shop", Name: "old", Addrs: []netip.Addr{ad("10.0.0.5")}},
			{UID: "shop/web", Namespace: "shop", Name: "web", Addrs: []netip.Addr{ad("10.0.0.5"), ad("fd00::5")}, Meshed: true},
			{UID: "shop/late", Namespace: "shop", Name: "late", Addrs: []netip.Addr{ad("10.0.0.5")}},
		},
		Services: []mesh.Service{{
			Namespace: "shop", Name: "web", Addrs: []netip.Addr{ad("10.96.0.1"), ad("fd96::1")},
			Ports: []mesh.Port{
				{Port: 443, Endpoints: []mesh.Endpoint{{Addr: ap("10.9.9.9:443")}}},
				{Port: 80, Protocol: mesh.HTTP1, Endpoints: []mesh.Endpoint{
					{Addr: ap("[fd00::5]:8080"), Workload: "shop/web"},
					{Addr: ap("10.0.0.5:8080"), Workload: "shop/web"},
					{Addr: ap("[::ffff:10.0.0.6]:8080"), Workload: "gone"},
				}},
			},
		}, {
			Namespace: "shop", Name: "web2",
			Ports: []mesh.Port{{Port: 80, Protocol: mesh.HTTP2, Endpoints: []mesh.Endpoint{{Addr: ap("10.0.0.5:8080")}}}},
		}},
	}
}

func TestServiceLookup(t *testing.T) {
	tab := New(snapshot())
	p, svc := tab.Service(ap("[::ffff:10.96.0.1]:80"))
	if p == nil || svc.Label != "shop/web" || p.Protocol != mesh.HTTP1 {
		t.Fatalf("v4-mapped Service address: port %+v", p)
	}
	v4, v6 := p.Endpoints(ad("10.96.0.1")), p.Endpoints(ad("fd96::1"))
	if len(v4) != 2 || len(v6) != 1 || v6[0].Addr != ap("[fd00::5]:8080") {
		t.Fatalf("families: v4 %v, v6 %v", v4, v6)
	}
	if v4[0].Workload == nil || v4[0].Workload.Name != "web" {
		t.Errorf("endpoint without its workload: %+v", v4[0])
	}
	if v4[1].Addr != ap("10.0.0.6:8080") || v4[1].Workload != nil {
		t.Errorf("unknown workload: %+v", v4[1])
	}
	if p, _ := tab.Service(ap("10.96.0.1:443")); p == nil || p.Protocol != mesh.Detect {
		t.Errorf("undeclared port: %+v", p)
	}
	if p, svc := tab.Service(ap("10.96.0.1:81")); p != nil || svc == nil {
		t.Errorf("a port that the Service lacks: %v %v", p, svc)
	}
	if _, svc := tab.Service(ap("10.0.0.5:80")); svc != nil {
		t.Errorf("a pod address is not a Service")
	}
}

func TestWorkloadLookup(t *testing.T) {
	tab := New(snapshot())
	if w := tab.Workload(ad("::ffff:10.0.0.5")); w == nil || w.Name != "web" {
		t.Errorf("stale unmeshed records must not hide the meshed workload: %+v", w)
	}
	if tab.Workload(ad("10.0.0.99")) != nil {
		t.Errorf("unknown must be nil")
	}
}

func TestDeclaredConflictsCancel(t *testing.T) {
	tab := New(snapshot())
	for dst, want := range map[string]mesh.Protocol{
		"10.0.0.5:8080":  mesh.Detect, // http1 and http2 disagree
		"[fd00::5]:8080": mesh.HTTP1,
		"10.0.0.5:1":     mesh.Detect,
	} {
		if got := tab.Declared(ap(dst)); got != want {
			t.Errorf("Declared(%s) = %s, want %s", dst, got, want)
		}
	}
}

func TestSwapCountsGenerations(t *testing.T) {
	l := NewLive()
	if g := l.Load().Generation; g == 0 || l.Load().Version != 0 {
		t.Fatalf("empty table: generation %d", g)
	}
	before := l.Load().Generation
	l.Swap(New(snapshot()))
	l.Swap(New(snapshot()))
	if got := l.Load(); got.Generation != before+2 || got.Version != 7 {
		t.Errorf("generation %d, version %d", got.Generation, got.Version)
	}
}
