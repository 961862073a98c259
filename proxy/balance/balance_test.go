package balance

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"conduit.io/conduit/proxy/table"
)

func eps(n int) []table.Endpoint {
	out := make([]table.Endpoint, n)
	for i := range out {
		out[i].Addr = netip.MustParseAddrPort(fmt.Sprintf("10.0.0.%d:80", i+1))
	}
	return out
}

func seeded(t *testing.T, n int) *Balancer {
	t.Helper()
	b := New(rand.New(rand.NewPCG(1, 2)).IntN)
	b.Update(1, eps(n))
	return b
}

func TestNoEndpoints(t *testing.T) {
	if e := seeded(t, 0).Pick(0, nil); e != nil {
		t.Errorf("picked %v out of nothing", e.Addr)
	}
}

func TestEvenSpreadWhileStreamsStayOpen(t *testing.T) {
	b := seeded(t, 4)
	for range 400 {
		b.Pick(0, nil).Start()
	}
	for _, e := range b.eps {
		if e.Active() < 85 || e.Active() > 115 {
			t.Errorf("%v carries %d of 400 streams", e.Addr, e.Active())
		}
	}
}

func TestSlowEndpointGetsLess(t *testing.T) {
	b := seeded(t, 4)
	now := int64(0)
	count := map[netip.AddrPort]int{}
	for range 4000 {
		now += int64(time.Millisecond)
		e := b.Pick(now, nil)
		count[e.Addr]++
		l := time.Millisecond
		if e == b.eps[0] {
			l = 100 * time.Millisecond
		}
		e.Observe(now, l)
	}
	if slow := count[b.eps[0].Addr]; slow > 120 || slow == 0 {
		t.Errorf("the slow endpoint got %d of 4000 streams; want a few, not none", slow)
	}
}

func TestSlightlySlowerEndpointKeepsAShare(t *testing.T) {
	b := seeded(t, 2)
	now, remote := int64(0), 0
	for range 4000 {
		now += int64(20 * time.Millisecond)
		e := b.Pick(now, nil)
		l := 300 * time.Microsecond
		if e == b.eps[1] {
			l = 900 * time.Microsecond
			remote++
		}
		e.Observe(now, l)
	}
	if remote < 1400 || remote > 2000 {
		t.Errorf("the remote endpoint got %d of 4000 streams", remote)
	}
}

func TestEjectionBacksOffAndEnds(t *testing.T) {
	b := seeded(t, 3)
	bad := b.eps[1]
	now := int64(0)
	for i, want := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second} {
		bad.Failed(now)
		if got := time.Duration(bad.until - now); got != want {
			t.Errorf("ejection %d lasts %s, want %s", i, got, want)
		}
		for range 200 {
			if b.Pick(now, nil) == bad {
				t.Fatalf("an ejected endpoint was picked")
			}
		}
		now = bad.until
	}
	for i := 0; b.Pick(now, nil) != bad; i++ {
		if i > 1000 {
			t.Fatal("the endpoint does not come back when its ejection ends")
		}
	}
	bad.Failed(now)
	if until := bad.until; until == now {
		t.Error("not ejected")
	} else if bad.Failed(now); bad.until != until {
		t.Error("a second failure of the same moment counted")
	}
	for range 20 {
		now = bad.until
		bad.Failed(now)
	}
	if got := time.Duration(bad.until - now); got != maxEjection {
		t.Errorf("longest ejection is %s, want %s", got, maxEjection)
	}
	bad.Connected()
	if now < bad.until {
		t.Error("still ejected after a connection")
	}
}

func TestAllEjectedStillServes(t *testing.T) {
	for _, n := range []int{1, 2, 3} {
		b := seeded(t, n)
		for _, e := range b.eps {
			e.Failed(0)
		}
		if b.Pick(1, nil) == nil {
			t.Errorf("%d endpoints, all ejected: none picked", n)
		}
	}
}

func TestTriedIsAvoided(t *testing.T) {
	b := seeded(t, 3)
	b.eps[2].Failed(0) // ejected, but better than one that just failed this very stream
	tried := []*Endpoint{b.eps[0], b.eps[1]}
	for range 50 {
		if e := b.Pick(1, tried); e != b.eps[2] {
			t.Fatalf("picked %v again", e.Addr)
		}
	}
	if e := b.Pick(1, b.eps); e == nil {
		t.Error("all tried: want any, got none")
	}
}

func TestUpdateKeepsWhatWasLearnt(t *testing.T) {
	b := seeded(t, 3)
	keep, gone := b.eps[1], b.eps[2]
	keep.Start()
	keep.Failed(0)
	gone.Start()
	b.Update(2, eps(2))
	if b.Len() != 2 || b.Generation() != 2 || b.eps[1] != keep || keep.Active() != 1 || keep.until <= 1 {
		t.Errorf("state was lost")
	}
	gone.End() // its last stream ends after it left: harmless
}

// Clients are spread evenly, and stay when other endpoints come and go.
func TestHome(t *testing.T) {
	const clients = 4000
	b := seeded(t, 8)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }
	homes, count := map[int]netip.AddrPort{}, map[netip.AddrPort]int{}
	for i := range clients {
		homes[i] = b.Home(addr(i), 0, nil).Addr
		count[homes[i]]++
	}
	for a, n := range count {
		if n < clients/8*8/10 || n > clients/8*12/10 {
			t.Errorf("%v is home to %d of %d clients", a, n, clients)
		}
	}
	gone := b.eps[3].Addr
	all := eps(9) // one more
	b.Update(2, append(all[:3:3], all[4:]...))
	moved := 0
	for i := range clients {
		switch now := b.Home(addr(i), 0, nil).Addr; {
		case now == homes[i]:
		case homes[i] != gone && now != all[8].Addr:
			t.Fatalf("client %d moved from %v to %v", i, homes[i], now)
		default:
			moved++
		}
	}
	if moved < clients/8 || moved > clients/3 {
		t.Errorf("%d of %d clients moved", moved, clients)
	}
	for _, e := range b.eps {
		e.Failed(0)
	}
	if e := b.Home(addr(1), 0, nil); e != nil {
		t.Errorf("home is %v, which cannot be reached", e.Addr)
	}
}
