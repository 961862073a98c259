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
	if err := s.n.SetSnapshot(&api.Snapshot{Services: []mesh.Service{svc}}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sticks) do(f func()) {
	s.t.Helper()
	if err := s.loop.Do(f); err != nil {
		s.t.Fatal(err)
	}
}

func client(name string) *share {
	p := &pod{}
	p.set(&mesh.Workload{Namespace: "shop", Name: name})
	return newShare(p)
}

// conn is a new connection.
func (s *sticks) conn(client *share, dst string) *down {
	return &down{share: client, dst: netip.MustParseAddrPort(dst)}
}

// next is where the connection's next stream goes.
func (s *sticks) next(d *down, tried ...*balance.Endpoint) *balance.Endpoint {
	return s.pick(s.resolve(d), tried)
}

// crowd makes e so busy that nobody chooses it freely.
func crowd(e *balance.Endpoint) {
	for range 10000 {
		e.Start()
	}
}

func (s *sticks) expire() {
	for _, a := range s.affinities {
		a.used -= int64(hold + time.Second)
	}
}

func TestAffinityHolds(t *testing.T) {
	s := startSticky(t)
	s.do(func() {
		one := client("one")
		first := s.next(s.conn(one, "10.96.0.1:80"))
		crowd(first)
		for range 100 {
			if e := s.next(s.conn(one, "10.96.0.1:80")); e != first {
				t.Fatalf("went to %v after %v", e.Addr, first.Addr)
			}
		}
		if e := s.next(s.conn(one, "198.51.100.1:80")); e.Addr != first.Addr {
			t.Errorf("by another address of the Service: %v after %v", e.Addr, first.Addr)
		}
		// Others are not bound by it.
		for _, d := range []*down{s.conn(one, "10.96.0.1:81"), s.conn(client("two"), "10.96.0.1:80"), s.conn(one, "[fd00::96]:80")} {
			if e := s.next(d); e == first {
				t.Errorf("%v of %s went to the crowded endpoint", d.dst, d.share.pod.record().Name)
			}
		}
	})
}

func TestAffinityExpires(t *testing.T) {
	s := startSticky(t)
	s.do(func() {
		one := client("one")
		old := s.conn(one, "10.96.0.1:80")
		first := s.next(old)
		crowd(first)
		s.expire()
		fresh := s.conn(one, "10.96.0.1:80")
		second := s.next(fresh)
		if second == first {
			t.Errorf("still at %v", first.Addr)
		}
		// A connection that is open stays, and does not draw the others back.
		if e := s.next(old); e != first {
			t.Errorf("an open connection went from %v to %v", first.Addr, e.Addr)
		}
		if e := s.next(s.conn(one, "10.96.0.1:80")); e != second {
			t.Errorf("went to %v after %v", e.Addr, second.Addr)
		}
		// While nothing else holds, its use does.
		s.expire()
		s.next(old)
		if e := s.next(s.conn(one, "10.96.0.1:80")); e != first {
			t.Errorf("went to %v while a connection is used to %v", e.Addr, first.Addr)
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
	one := client("one")
	var old *down
	var first, second *balance.Endpoint
	s.do(func() {
		old = s.conn(one, "10.96.0.1:80")
		first = s.next(old)
		crowd(first)
	})
	s.snapshot("")
	s.do(func() {
		if e := s.next(s.conn(one, "10.96.0.1:80")); e.Addr != first.Addr {
			t.Errorf("after a snapshot: %v, before %v", e.Addr, first.Addr)
		}
	})
	s.snapshot(first.Addr.String())
	s.do(func() {
		if second = s.next(old); second.Addr == first.Addr {
			t.Errorf("goes to %v, which has gone", first.Addr)
		}
		if e := s.next(s.conn(one, "10.96.0.1:80")); e != second {
			t.Errorf("a new connection goes to %v, the old one to %v", e.Addr, second.Addr)
		}
	})
	s.snapshot("")
	s.do(func() {
		if e := s.next(s.conn(one, "10.96.0.1:80")); e.Addr != second.Addr {
			t.Errorf("when the endpoint has come back: %v after %v", e.Addr, second.Addr)
		}
	})
}

func TestAffinityWithTheUnreachable(t *testing.T) {
	s := startSticky(t)
	s.do(func() {
		d := s.conn(client("one"), "10.96.0.1:80")
		first := s.next(d)
		first.Failed(s.loop.Now())
		second := s.next(d, first)
		if second == first {
			t.Fatal("tried again")
		}
		first.Connected()
		crowd(second)
		if e := s.next(s.conn(d.share, "10.96.0.1:80")); e != second {
			t.Errorf("went to %v after %v", e.Addr, second.Addr)
		}
	})
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
		one := client("one")
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
		d := s.conn(client("one"), "10.96.0.1:80")
		s.next(d)
		if n := testing.AllocsPerRun(100, func() { s.next(d) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
