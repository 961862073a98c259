package node

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/balance"
)

const hold = 10 * time.Second

// sticks is a shard with the Service shop/web at two addresses, whose eight endpoints keep their clients.
type sticks struct {
	*shard
	t *testing.T
}

func startSticky(t *testing.T) *sticks {
	n := start(t)
	s := &sticks{n.shards[0], t}
	s.snapshot("")
	return s
}

// snapshot has the Service without the endpoint at gone.
func (s *sticks) snapshot(gone string) {
	s.t.Helper()
	svc := mesh.Service{Namespace: "shop", Name: "web", Affinity: uint32(hold / time.Second)}
	svc.Addrs = []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("fd00::96")}
	for _, port := range []uint16{80, 81} {
		p := mesh.Port{Port: port}
		for i := range 8 {
			for _, format := range []string{"10.0.0.%d:8080", "[fd00::%d]:8080"} {
				if a := netip.MustParseAddrPort(fmt.Sprintf(format, i+1)); a.String() != gone {
					p.Endpoints = append(p.Endpoints, mesh.Endpoint{Addr: a})
				}
			}
		}
		svc.Ports = append(svc.Ports, p)
	}
	s.n.SetSnapshot(&api.Snapshot{Services: []mesh.Service{svc}})
}

func (s *sticks) do(f func()) {
	s.t.Helper()
	if err := s.loop.Do(f); err != nil {
		s.t.Fatal(err)
	}
}

// client is a pod at an address.
func client(addr string) *share {
	p := &pod{}
	p.set(&mesh.Workload{Namespace: "shop", Addrs: []netip.Addr{netip.MustParseAddr(addr)}})
	return newShare(p)
}

// conn is a new connection.
func (s *sticks) conn(client *share, dst string) *down {
	return &down{share: client, dst: netip.MustParseAddrPort(dst), client: netip.AddrPortFrom(client.pod.record().Addrs[0], 0)}
}

// next is where the connection's next stream goes.
func (s *sticks) next(d *down, tried ...*balance.Endpoint) *balance.Endpoint {
	return s.pick(s.resolve(d), tried)
}

// away has a client driven from where it belongs, by a failure that has passed, to another endpoint.
func (s *sticks) away(one *share, dst string) (home, other *balance.Endpoint) {
	s.t.Helper()
	d := s.conn(one, dst)
	home = s.next(d)
	home.Failed(s.loop.Now())
	if other = s.next(d, home); other == home {
		s.t.Fatal("went where it failed")
	}
	home.Connected()
	return home, other
}

func (s *sticks) expire() {
	for _, a := range s.affinities {
		a.used -= int64(hold + time.Second)
	}
}

func TestAffinityHolds(t *testing.T) {
	s := startSticky(t)
	s.do(func() {
		one := client("10.1.0.1")
		home, other := s.away(one, "10.96.0.1:80")
		for range 100 {
			if e := s.next(s.conn(one, "10.96.0.1:80")); e != other {
				t.Fatalf("went to %v after %v", e.Addr, other.Addr)
			}
		}
		if e := s.next(s.conn(one, "198.51.100.1:80")); e.Addr != other.Addr {
			t.Errorf("by another address of the Service: %v after %v", e.Addr, other.Addr)
		}
		// Nobody else is bound by it: neither the client's connections to another port, nor others' from the same address.
		if e := s.next(s.conn(one, "10.96.0.1:81")); e.Addr != home.Addr {
			t.Errorf("to another port: %v, and belongs to %v", e.Addr, home.Addr)
		}
		if e := s.next(s.conn(client("10.1.0.1"), "10.96.0.1:80")); e != home {
			t.Errorf("its successor: %v, and belongs to %v", e.Addr, home.Addr)
		}
	})
}

func TestAffinityExpires(t *testing.T) {
	s := startSticky(t)
	s.do(func() {
		one := client("10.1.0.1")
		home, other := s.away(one, "10.96.0.1:80")
		old := s.conn(one, "10.96.0.1:80")
		s.next(old)
		s.expire()
		if e := s.next(s.conn(one, "10.96.0.1:80")); e != home {
			t.Errorf("still at %v", e.Addr)
		}
		// A connection that is open stays, and does not draw the others back.
		if e := s.next(old); e != other {
			t.Errorf("an open connection went from %v to %v", other.Addr, e.Addr)
		}
		if e := s.next(s.conn(one, "10.96.0.1:80")); e != home {
			t.Errorf("went to %v after %v", e.Addr, home.Addr)
		}
		// While nothing else holds, its use does.
		s.expire()
		s.next(old)
		if e := s.next(s.conn(one, "10.96.0.1:80")); e != other {
			t.Errorf("went to %v while a connection is used to %v", e.Addr, other.Addr)
		}
		s.expire()
		s.affinities.drop(func(_ affinityKey, a *affinity) bool { return !a.holds(s.loop.Now()) })
		if len(s.affinities) != 0 {
			t.Errorf("%d affinities are left", len(s.affinities))
		}
	})
}

func TestAffinityOutlivesSnapshots(t *testing.T) {
	s := startSticky(t)
	one := client("10.1.0.1")
	var old *down
	var home, other, third *balance.Endpoint
	s.do(func() {
		home, other = s.away(one, "10.96.0.1:80")
		old = s.conn(one, "10.96.0.1:80")
		s.next(old)
	})
	s.snapshot("")
	s.do(func() {
		if e := s.next(s.conn(one, "10.96.0.1:80")); e.Addr != other.Addr {
			t.Errorf("after a snapshot: %v, before %v", e.Addr, other.Addr)
		}
	})
	s.snapshot(other.Addr.String())
	s.do(func() {
		if third = s.next(old); third.Addr != home.Addr {
			t.Errorf("goes to %v when %v has gone, and belongs to %v", third.Addr, other.Addr, home.Addr)
		}
		if e := s.next(s.conn(one, "10.96.0.1:80")); e != third {
			t.Errorf("a new connection goes to %v, the old one to %v", e.Addr, third.Addr)
		}
	})
	s.snapshot("")
	s.do(func() {
		if e := s.next(s.conn(one, "10.96.0.1:80")); e.Addr != third.Addr {
			t.Errorf("when the endpoint has come back: %v after %v", e.Addr, third.Addr)
		}
	})
}

// A proxy that takes over from another leads clients to where they were.
func TestAffinityOfANewProxy(t *testing.T) {
	one := client("10.1.0.1")
	var was netip.AddrPort
	for range 5 {
		s := startSticky(t)
		s.do(func() {
			e := s.next(s.conn(one, "10.96.0.1:80"))
			if was.IsValid() && e.Addr != was {
				t.Errorf("went to %v after %v", e.Addr, was)
			}
			was = e.Addr
		})
	}
}

func TestAffinitiesAreBounded(t *testing.T) {
	s := startSticky(t)
	s.do(func() {
		now := s.loop.Now()
		for i := range 2 * maxAffinities {
			s.affinities.put(affinityKey{service: fmt.Sprint(i)}, netip.AddrPort{}, hold, now+int64(i))
		}
		young := 0
		for k := range s.affinities {
			if i := 0; func() bool { _, err := fmt.Sscan(k.service, &i); return err == nil && i >= maxAffinities }() {
				young++
			}
		}
		if len(s.affinities) != maxAffinities || young < maxAffinities*3/4 {
			t.Errorf("%d affinities, %d of them of the later half", len(s.affinities), young)
		}
		one := client("10.1.0.1")
		s.next(s.conn(one, "10.96.0.1:80"))
		s.remove(one.pod)
		for k := range s.affinities {
			if k.client == one.pod {
				t.Error("a pod that has gone has left one behind")
			}
		}
	})
}

// The choice costs no allocation, with an affinity or without one.
func TestChoiceDoesNotAllocate(t *testing.T) {
	s := startSticky(t)
	s.do(func() {
		d := s.conn(client("10.1.0.1"), "10.96.0.1:80")
		s.next(d)
		if n := testing.AllocsPerRun(100, func() { s.next(d) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
