package node

import (
	"net/netip"
	"testing"
	"time"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

func TestInterest(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:0"), netip.MustParseAddrPort("[fd00::1]:80")
	in := newInterest()
	want := func(what string, add, drop int) {
		t.Helper()
		if l := in.take(); len(l.Add) != add || len(l.Drop) != drop {
			t.Errorf("%s: %+v", what, l)
		}
	}
	for _, held := range []netip.AddrPort{a, a, b} {
		if !in.hold(held, 2) {
			t.Fatalf("%s is one too many", held)
		}
	}
	if in.hold(netip.MustParseAddrPort("10.0.0.2:0"), 2) {
		t.Error("a third of two is held")
	}
	want("two held", 2, 0)
	want("nothing since", 0, 0)
	in.release(a)
	want("one shard has left", 0, 0)
	in.release(a)
	want("the last shard has left", 0, 1)
	in.release(b)
	in.hold(b, 2)
	want("left and returned", 0, 0)
	in.hold(a, 2)
	in.release(a)
	want("came and went", 0, 0)
	if all := in.all(); len(all) != 1 || all[0] != b {
		t.Errorf("all: %v", all)
	}
	in.release(b)
	want("after all", 0, 1)
}

// A pod that tries all ports of a node leaves room for what others dial.
func TestPortsOfInterestAreBounded(t *testing.T) {
	in := newInterest()
	scan := func() (held int) {
		for port := range uint16(65535) {
			if in.hold(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port+1), maxInterest) {
				held++
			}
		}
		return held
	}
	if n := scan(); n != maxPorts {
		t.Errorf("%d ports are held, want %d", n, maxPorts)
	}
	if !in.hold(netip.MustParseAddrPort("10.0.0.1:0"), maxInterest) {
		t.Error("an address is refused")
	}
	for _, a := range in.all() {
		in.release(a)
	}
	if n := scan(); n != maxPorts || len(in.held) != maxPorts {
		t.Errorf("%d ports are held after all were released", n)
	}
}

func TestUnusedAddressIsForgotten(t *testing.T) {
	n := start(t)
	n.SetSnapshot(&api.Snapshot{Version: 1, OnDemand: true})
	sh := n.shards[0]
	old, young, asked := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	_ = sh.loop.Do(func() {
		for _, a := range []netip.Addr{old, young, asked} {
			sh.notice(a)
		}
		sh.lookups[whole(old)].used -= int64(lookupIdle + time.Second)
		sh.lookups[whole(asked)].used -= int64(lookupIdle + time.Second)
		sh.notice(asked)
		sh.forget()
	})
	// Ports that are nobody's are forgotten sooner.
	used, tried := netip.MustParseAddrPort("192.0.2.1:30080"), netip.MustParseAddrPort("192.0.2.1:1")
	n.SetSnapshot(&api.Snapshot{Version: 2, OnDemand: true, ByPort: []netip.Addr{used.Addr()}, Nobody: []netip.AddrPort{tried},
		Services: []mesh.Service{{Ports: []mesh.Port{{Port: 80, At: []netip.AddrPort{used}}}}}})
	_ = sh.loop.Do(func() {
		for _, a := range []netip.AddrPort{used, tried} {
			sh.ask(a, maxInterest).used -= int64(portIdle + time.Second)
		}
		sh.forget()
		if sh.lookups[used] == nil || sh.lookups[tried] != nil {
			t.Errorf("of ports that were not used for a while, the Service's is kept: %v, and nobody's: %v", sh.lookups[used] != nil, sh.lookups[tried] != nil)
		}
		delete(sh.lookups, used)
		sh.n.interest.release(used)
	})
	if all := n.Hello().Interest; len(all) != 2 || all[0] != whole(young) || all[1] != whole(asked) {
		t.Errorf("of interest are %v", all)
	}
}
