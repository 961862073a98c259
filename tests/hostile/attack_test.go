package hostile

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
)

// attack is one way to make trouble.
type attack struct {
	name string
	kind mesh.Abuse // which is counted; AbuseNone: it is not told from good traffic
	// strike attacks the proxy once, and says what was wrong with how the proxy took it.
	strike  func(f *field) error
	strikes int     // how often at least; 0: once
	at      int     // how many at once; 0: one
	memory  float64 // MiB of anonymous memory that the proxy may have; 0: 64
	each    bool    // every strike is counted, not just some
	slow    bool    // it waits for a clock of the proxy
}

// field is where an attack takes place.
type field struct {
	addr string
	b    *bystanders
	// seen reports whether the proxy has counted the attack; nil if it does not.
	seen func() bool
}

// wait holds what an attacker has until every bystander has had n answers more, and the attack has been seen.
func (f *field) wait(n uint64) error {
	if f.b == nil { // a benchmark, which ends the attacker's process
		select {}
	}
	since := f.b.count()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !f.b.have(since, n) || f.seen != nil && !f.seen() {
		select {
		case <-tick.C:
		case <-end:
			return fmt.Errorf("the bystanders had %v answers, or the attack was not seen", f.b.count())
		}
	}
	return nil
}

// run lets the attackers strike while bystanders are served.
func (a *attack) run(t *testing.T, p *process, b *bystanders) {
	ctx, done := context.WithCancel(t.Context())
	peak := make(chan float64, 1)
	go func() { peak <- p.peak(ctx) }()
	counted := func() float64 { return p.count("conduit_proxy_abuse_total", "kind", string(a.kind)) }
	before := counted()
	f := &field{addr: p.addrs[0], b: b}
	if a.kind != mesh.AbuseNone {
		f.seen = func() bool { return counted() > before }
	}
	served := b.count()
	strikes := a.assault(t, f, func(n int) bool { return n < max(a.strikes, 1) || !b.have(served, 20) })
	done()
	most, limit := <-peak, max(a.memory, 64)
	t.Logf("%.0f MiB, %d strikes", most, strikes)
	if most > limit {
		t.Errorf("the proxy had %.0f MiB of memory, more than %.0f", most, limit)
	}
	switch n := counted() - before; {
	case a.kind == mesh.AbuseNone:
	case n == 0, a.each && n < float64(strikes):
		t.Errorf("%v strikes of %q were counted, of %d", n, a.kind, strikes)
	}
}

// assault strikes as long as more says so of the strikes until then.
func (a *attack) assault(t testing.TB, f *field, more func(n int) bool) int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	n := 0
	next := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if t.Failed() || !more(n) {
			return false
		}
		n++
		return true
	}
	for range max(a.at, 1) {
		wg.Go(func() {
			for next() {
				if err := a.strike(f); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	return n
}

// peak watches the proxy's memory, and returns the most.
func (p *process) peak(ctx context.Context) (most float64) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return most
		case <-tick.C:
			most = max(most, p.memory())
		}
	}
}

// runAll makes the attacks, on a proxy that has bystanders: those that wait for one of its clocks at the same time, the
// others one after the other.
func runAll(t *testing.T, attacks []attack) {
	app := serve(t)
	ready := func(t *testing.T) (*process, *bystanders) {
		p := start(t, to(app, "detect"))
		b := watch(t, p.addrs[0])
		t.Cleanup(func() { b.stop() })
		return p, b
	}
	p, b := ready(t)
	for i := range attacks {
		a := &attacks[i]
		t.Run(a.name, func(t *testing.T) {
			p, b := p, b
			if a.slow {
				t.Parallel()
			}
			if a.memory > 0 { // what earlier attacks have left is not its own
				p, b = ready(t)
			}
			a.run(t, p, b)
		})
	}
}
