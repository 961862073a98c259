// Package meter counts what the proxy carries. Counters live in series, one for each set of labels, held by the code
// that counts, so that counting is an atomic addition and no look-up. Each shard has a Set of its own that it alone
// adds series to; any goroutine may read them all as Prometheus text (Write).
package meter

import (
	"sync"
	"sync/atomic"
	"time"

	"conduit.io/conduit/mesh"
)

// Direction is the side of the pod on which a connection was taken.
type Direction string

// The directions.
const (
	Outbound Direction = "outbound" // the pod is the client
	Inbound  Direction = "inbound"  // the pod is the server
)

// The values of the protocol label.
const (
	HTTP1 = "http1"
	HTTP2 = "http2"
	GRPC  = "grpc"
	TCP   = "tcp"
)

// The values of the tls label.
const (
	MTLS  = "mtls"  // both sides authenticated
	Local = "local" // both sides on this node, identities known from the kernel
	None  = "none"  // plaintext
)

// Key is a set of labels.
type Key struct {
	Direction Direction
	Src, Dst  string // namespace/name, "unknown", "external"
	Protocol  string
	TLS       string
}

// reasons index the failure counters of a series. Those not listed count as the last.
var reasons = [...]mesh.Reason{
	mesh.ReasonNone, mesh.ReasonNoEndpoints, mesh.ReasonConnect, mesh.ReasonConnectTimeout, mesh.ReasonTLS,
	mesh.ReasonPeerIdentity, mesh.ReasonPlaintext, mesh.ReasonUpstreamReset, mesh.ReasonUpstreamProto,
	mesh.ReasonDownstreamReset, mesh.ReasonBadRequest, mesh.ReasonTooLarge, mesh.ReasonOverload, mesh.ReasonDraining,
	mesh.ReasonNotMeshTarget, mesh.ReasonNoCertificate, mesh.ReasonTimeout, "other",
}

func reasonIndex(r mesh.Reason) int {
	for i := range reasons {
		if reasons[i] == r {
			return i
		}
	}
	return len(reasons) - 1
}

// byReason is a counter for each reason.
type byReason [len(reasons)]atomic.Uint64

// Buckets are the upper bounds of the latency histogram in milliseconds: three digits a decade where people look.
var Buckets = [...]float64{
	0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 2, 3, 4, 5, 7, 10, 20, 30, 40, 50, 70, 100, 200, 300, 400, 500,
	1000, 2000, 3000, 5000, 10000, 20000, 50000,
}

// bounds are Buckets in nanoseconds.
var bounds = func() (b [len(Buckets)]int64) {
	for i, ms := range Buckets {
		b[i] = int64(ms * float64(time.Millisecond))
	}
	return b
}()

// Requests is the series of one Key's requests.
type Requests struct {
	key      Key
	total    atomic.Uint64
	success  atomic.Uint64
	failure  atomic.Pointer[byReason]
	buckets  [len(Buckets) + 1]atomic.Uint64 // the last is +Inf
	sumNanos atomic.Uint64
}

// Started counts a request.
func (r *Requests) Started() { r.total.Add(1) }

// Ended counts a response, and its latency from the request's head to the response's end.
func (r *Requests) Ended(latency time.Duration, ok bool, reason mesh.Reason) {
	if ok {
		r.success.Add(1)
	} else {
		f := r.failure.Load()
		if f == nil {
			r.failure.CompareAndSwap(nil, new(byReason))
			f = r.failure.Load()
		}
		f[reasonIndex(reason)].Add(1)
	}
	n := max(int64(latency), 0)
	r.sumNanos.Add(uint64(n))
	i := 0
	for i < len(bounds) && n > bounds[i] {
		i++
	}
	r.buckets[i].Add(1)
}

// Conns is the series of one Key's connections.
type Conns struct {
	key    Key
	opened atomic.Uint64
	open   atomic.Int64
	closed byReason
	read   atomic.Uint64
	wrote  atomic.Uint64
}

// Opened counts a connection in.
func (c *Conns) Opened() {
	c.opened.Add(1)
	c.open.Add(1)
}

// Closed counts it out; an orderly end has no reason.
func (c *Conns) Closed(reason mesh.Reason) {
	c.open.Add(-1)
	c.closed[reasonIndex(reason)].Add(1)
}

// Bytes counts bytes read from, and written to, the connection's client.
func (c *Conns) Bytes(read, wrote uint64) {
	c.read.Add(read)
	c.wrote.Add(wrote)
}

// other is the label value that takes what exceeds the bound on series.
const other = "other"

// Set holds the series of one shard.
type Set struct {
	max     int
	dropped atomic.Uint64

	mu       sync.Mutex // guards the maps against Write; lookups of the owner need it not
	requests map[Key]*Requests
	conns    map[Key]*Conns
}

// NewSet makes a Set of at most max series of requests, and as many of connections, beside the overflow.
func NewSet(max int) *Set {
	return &Set{max: max, requests: make(map[Key]*Requests), conns: make(map[Key]*Conns)}
}

// Requests is the series for k, made when it is new. Only the owning shard calls it.
func (s *Set) Requests(k Key) *Requests {
	return series(s, s.requests, k, func(k Key) *Requests { return &Requests{key: k} })
}

// Conns is the series for k, made when it is new. Only the owning shard calls it.
func (s *Set) Conns(k Key) *Conns {
	return series(s, s.conns, k, func(k Key) *Conns { return &Conns{key: k} })
}

// series finds or makes the series for k in m; over the bound it is the one that stands for all others.
func series[T any](s *Set, m map[Key]*T, k Key, make func(Key) *T) *T {
	if v := m[k]; v != nil {
		return v
	}
	if len(m) >= s.max && k.Src != other {
		s.dropped.Add(1)
		k.Src, k.Dst = other, other
		return series(s, m, k, make)
	}
	v := make(k)
	s.mu.Lock()
	m[k] = v
	s.mu.Unlock()
	return v
}

// GRPCOK classifies a grpc-status as Linkerd does: codes that blame the server are failures (Unknown 2,
// DeadlineExceeded 4, PermissionDenied 7, Internal 13, Unavailable 14, DataLoss 15); those that answer the client's
// own mistake are not. A missing status is a failure: the call was cut off.
func GRPCOK(status string) bool {
	switch status {
	case "", "2", "4", "7", "13", "14", "15":
		return false
	}
	return true
}
