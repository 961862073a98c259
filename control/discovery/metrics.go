package discovery

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"

	"google.golang.org/protobuf/proto"
)

// propagation are the bounds of its histogram, in milliseconds.
var propagation = [...]float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000}

// Metrics count what the service does.
type Metrics struct {
	x         *Index
	deferred  atomic.Uint64
	responses atomic.Uint64
	bytes     atomic.Uint64

	mu      sync.Mutex
	buckets [len(propagation) + 1]uint64
	sum     float64
}

func newMetrics(x *Index) *Metrics { return &Metrics{x: x} }

func (m *Metrics) sent(r *discoveryv1.WatchResponse) {
	m.responses.Add(1)
	m.bytes.Add(uint64(proto.Size(r)))
}

// applied notes that an agent acts on a version.
func (m *Metrics) applied(version uint64) {
	age, ok := m.x.age(version)
	if !ok {
		return
	}
	ms := float64(age.Microseconds()) / 1000
	i := 0
	for i < len(propagation) && ms > propagation[i] {
		i++
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buckets[i]++
	m.sum += ms
}

// Write writes them in the Prometheus text exposition format.
func (m *Metrics) Write(w io.Writer) {
	size := m.x.Size()
	family := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	for _, g := range []struct {
		name, kind, help string
		value            uint64
	}{
		{"conduit_discovery_services", "gauge", "Services in the index.", uint64(size.Services)},
		{"conduit_discovery_workloads", "gauge", "Pods in the index.", uint64(size.Workloads)},
		{"conduit_discovery_addresses", "gauge", "Addresses that are somebody's, or watched.", uint64(size.Addresses)},
		{"conduit_discovery_streams", "gauge", "Streams of agents and of tools.", uint64(size.Streams)},
		{"conduit_discovery_version", "gauge", "Version of the index.", size.Version},
		{"conduit_discovery_responses_total", "counter", "Messages sent on streams.", m.responses.Load()},
		{"conduit_discovery_bytes_total", "counter", "Bytes of these messages, before compression.", m.bytes.Load()},
		{"conduit_discovery_deferred_total", "counter", "Streams that were told to come again later.", m.deferred.Load()},
	} {
		family(g.name, g.kind, g.help)
		fmt.Fprintf(w, "%s %d\n", g.name, g.value)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	const name = "conduit_discovery_propagation_ms"
	family(name, "histogram", "From a change in the index until agents say that they act on it.")
	n := uint64(0)
	for i, le := range propagation {
		n += m.buckets[i]
		fmt.Fprintf(w, "%s_bucket{le=\"%g\"} %d\n", name, le, n)
	}
	n += m.buckets[len(propagation)]
	fmt.Fprintf(w, "%s_bucket{le=\"+Inf\"} %d\n%s_sum %g\n%s_count %d\n", name, n, name, m.sum, name, n)
}
