// Package balance picks an endpoint: of two random ones, the one that the stream would cost less, measured as peak-EWMA
// latency times active streams (Mitzenmacher, "The Power of Two Choices"; Finagle's Peak EWMA). The cheaper is not
// certain but more likely by the ratio of the costs: an endpoint on another node, a little slower, still gets its share,
// and one that has become fast again is found out. Endpoints that could not be dialled are passed over for a while.
// A Balancer belongs to one shard loop; nothing locks.
package balance

import (
	"math"
	"net/netip"
	"time"

	"conduit.io/conduit/proxy/table"
)

const (
	// decay is the time constant with which an old latency loses its weight.
	decay = 10 * time.Second
	// untried is the latency assumed of an endpoint that has answered nothing yet: low, so that it gets traffic,
	// but such that an endpoint that does not answer is not piled upon.
	untried = float64(time.Millisecond)
	// indifferent is added to every latency: differences far below it are noise, or the way to another node.
	indifferent = float64(2 * time.Millisecond)
	// firstEjection doubles with every further failure, up to maxEjection.
	firstEjection = 500 * time.Millisecond
	maxEjection   = 30 * time.Second
)

// Endpoint is an endpoint with what was learnt of it.
type Endpoint struct {
	table.Endpoint

	active   int
	latency  float64 // nanoseconds
	sampled  int64   // when latency was updated
	failures int     // dials failed in a row
	until    int64   // ejected until then
}

// Balancer spreads streams over the endpoints of one Service port and family.
type Balancer struct {
	gen  uint64
	eps  []*Endpoint
	rand func(n int) int
}

// New is a Balancer without endpoints. rand(n) returns a number in [0, n).
func New(rand func(n int) int) *Balancer { return &Balancer{rand: rand} }

// Generation is the one given to the last Update.
func (b *Balancer) Generation() uint64 { return b.gen }

// Len is how many endpoints there are, ejected ones included.
func (b *Balancer) Len() int { return len(b.eps) }

// Update sets the endpoints; those whose address stays keep what was learnt.
func (b *Balancer) Update(gen uint64, eps []table.Endpoint) {
	old := make(map[netip.AddrPort]*Endpoint, len(b.eps))
	for _, e := range b.eps {
		old[e.Addr] = e
	}
	b.gen = gen
	b.eps = make([]*Endpoint, 0, len(eps))
	for _, te := range eps {
		e := old[te.Addr]
		if e == nil {
			e = &Endpoint{latency: untried}
		}
		e.Endpoint = te
		b.eps = append(b.eps, e)
	}
}

// Pick chooses an endpoint for a stream that starts now, other than those in tried while there are others; nil when
// there is none at all. When every endpoint is ejected, ejection counts for nothing: trying is better than failing.
func (b *Balancer) Pick(now int64, tried []*Endpoint) *Endpoint {
	switch n := len(b.eps); n {
	case 0:
		return nil
	case 1:
		return b.eps[0]
	}
	if e := b.two(func(e *Endpoint) bool { return e.Fit(now, tried) }, now); e != nil {
		return e
	}
	if e := b.two(func(e *Endpoint) bool { return !has(tried, e) }, now); e != nil {
		return e
	}
	return b.two(func(*Endpoint) bool { return true }, now)
}

// At is the endpoint at addr, or nil.
func (b *Balancer) At(addr netip.AddrPort) *Endpoint {
	for _, e := range b.eps {
		if e.Addr == addr {
			return e
		}
	}
	return nil
}

// Fit reports whether e may take a stream now: it is not passed over, and not among tried.
func (e *Endpoint) Fit(now int64, tried []*Endpoint) bool { return now >= e.until && !has(tried, e) }

// two draws two distinct endpoints that are fit and returns the cheaper. Random probes find them in the usual case
// that nearly all are fit; else all are looked at.
func (b *Balancer) two(fit func(*Endpoint) bool, now int64) *Endpoint {
	n := len(b.eps)
	i := b.rand(n)
	j := b.rand(n - 1)
	if j >= i {
		j++
	}
	x, y := b.eps[i], b.eps[j]
	fx, fy := fit(x), fit(y)
	switch {
	case fx && fy:
		return b.cheaper(x, y, now)
	case n == 2 && fx:
		return x
	case n == 2 && fy:
		return y
	}
	var ok []*Endpoint
	for _, e := range b.eps {
		if fit(e) {
			ok = append(ok, e)
		}
	}
	switch len(ok) {
	case 0:
		return nil
	case 1:
		return ok[0]
	}
	i = b.rand(len(ok))
	j = b.rand(len(ok) - 1)
	if j >= i {
		j++
	}
	return b.cheaper(ok[i], ok[j], now)
}

func has(list []*Endpoint, e *Endpoint) bool {
	for _, x := range list {
		if x == e {
			return true
		}
	}
	return false
}

// cheaper is more likely the cheaper of the two, the more so the more they differ.
func (b *Balancer) cheaper(x, y *Endpoint, now int64) *Endpoint {
	const grain = 1 << 20
	cx, cy := x.cost(now), y.cost(now)
	if float64(b.rand(grain)) < grain*cy/(cx+cy) {
		return x
	}
	return y
}

// cost is the load that one more stream would meet.
func (e *Endpoint) cost(now int64) float64 {
	l := e.latency * math.Exp(-float64(now-e.sampled)/float64(decay))
	active := float64(e.active + 1)
	return (l + indifferent) * active * active
}

// Active is how many streams the endpoint carries.
func (e *Endpoint) Active() int { return e.active }

// Start counts a stream in. End must follow.
func (e *Endpoint) Start() { e.active++ }

// End counts a stream out.
func (e *Endpoint) End() { e.active-- }

// Observe records the time to the first byte of a response. A peak counts at once, an improvement slowly.
func (e *Endpoint) Observe(now int64, latency time.Duration) {
	l := float64(latency)
	if l >= e.latency {
		e.latency = l
	} else {
		w := math.Exp(-float64(now-e.sampled) / float64(decay))
		e.latency = e.latency*w + l*(1-w)
	}
	e.sampled = now
	e.Connected()
}

// Connected notes that the endpoint could be reached.
func (e *Endpoint) Connected() {
	e.failures = 0
	e.until = 0
}

// Failed notes that the endpoint could not be reached: it is passed over for a time that doubles. While it is passed
// over more failures count for nothing: many streams may have waited for the same dial.
func (e *Endpoint) Failed(now int64) {
	if now < e.until {
		return
	}
	d := firstEjection << min(e.failures, 10)
	e.failures++
	e.until = now + int64(min(d, maxEjection))
}
