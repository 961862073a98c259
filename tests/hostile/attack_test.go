package hostile

import (
	"context"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
)

// attack is one way to make trouble.
type attack struct {
	name string
	kind mesh.Abuse // which is counted, at least once for every strike; AbuseNone: it is not told from good traffic
	// strike attacks the proxy once, and says what was wrong with how the proxy took it.
	strike func(addr string) error
	strikes,
	at int // how often, and how many at once
	memory float64 // MiB of anonymous memory that the proxy may have; 0: 48
	slow   bool    // it waits for a clock of the proxy
}

// run lets the attackers strike while bystanders are served.
func (a *attack) run(t *testing.T, p *process, b *bystanders) {
	ctx, done := context.WithCancel(t.Context())
	peak := make(chan float64, 1)
	go func() { peak <- p.peak(ctx) }()
	before := p.count("conduit_proxy_abuse_total", "kind", string(a.kind))
	served := b.count()
	strikes := a.assault(t, p, func(n int) bool { return n < max(a.strikes, 1) || !b.have(served, 20) })
	after := p.count("conduit_proxy_abuse_total", "kind", string(a.kind))
	done()
	if most, limit := <-peak, max(a.memory, 48); most > limit {
		t.Errorf("the proxy had %.0f MiB of memory, more than %.0f", most, limit)
	}
	if a.kind != mesh.AbuseNone && after-before < float64(strikes) {
		t.Errorf("%v strikes of %q were counted, of %d", after-before, a.kind, strikes)
	}
}

// assault strikes as long as more says so of the strikes until then.
func (a *attack) assault(t testing.TB, p *process, more func(n int) bool) int {
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
				if err := a.strike(p.addrs[0]); err != nil {
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

// runAll makes the attacks on one proxy, each with the same bystanders: those that wait for a clock of the proxy at the
// same time, the others one after the other.
func runAll(t *testing.T, attacks []attack) {
	p := start(t, to(serve(t), "detect"))
	b := watch(t, p.addrs[0])
	t.Cleanup(func() { b.stop() })
	for i := range attacks {
		a := &attacks[i]
		t.Run(a.name, func(t *testing.T) {
			if a.slow {
				if testing.Short() {
					t.Skip("it waits for the proxy's clocks: half a minute")
				}
				t.Parallel()
			}
			a.run(t, p, b)
		})
	}
}
