package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"conduit.io/conduit/cli/demoapp"
	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/cli/metrics"
)

// askLimit bounds the wait for a process's counts.
const askLimit = 10 * time.Second

// reading is what application and mesh have counted by some moment.
type reading struct {
	at    time.Time
	calls map[string][]demoapp.Call // by role: the application's own counts
	mesh  [][]metrics.Sample        // by node
	gaps  int                       // how often figures of the mesh went missing: a proxy was killed, an agent is silent
}

// grown is what the mesh has counted since before.
func (r *reading) grown(before *reading) []metrics.Sample {
	var out []metrics.Sample
	for i := range r.mesh {
		out = append(out, metrics.Since(before.mesh[i], r.mesh[i])...)
	}
	return out
}

// counter collects readings.
type counter struct {
	processes []*process
	nodes     []*lab.Node // with an agent
	totals    []metrics.Totals
	Trouble   error // why a node's figures were not to be had at the last reading; they may be back at the next
}

func newCounter(processes []*process, nodes []*lab.Node) *counter {
	return &counter{processes: processes, nodes: nodes, totals: make([]metrics.Totals, len(nodes))}
}

// read asks every process and every agent. A silent agent leaves its last figures standing; a silent process is an
// error.
func (c *counter) read(ctx context.Context) (*reading, error) {
	r := &reading{calls: map[string][]demoapp.Call{}}
	for _, p := range c.processes {
		e, err := p.ask(ctx, "report", "report", askLimit)
		if err != nil {
			return nil, err
		}
		r.calls[p.place.role] = append(r.calls[p.place.role], e.Calls...)
	}
	var trouble []error
	for i, n := range c.nodes {
		samples, err := scrape(ctx, n)
		if err != nil {
			r.gaps++
			trouble = append(trouble, fmt.Errorf("%s: no figures: %w", n.Name(), err))
		} else {
			c.totals[i].Add(samples)
		}
		r.mesh = append(r.mesh, c.totals[i].Samples())
		r.gaps += c.totals[i].Resets
	}
	c.Trouble = errors.Join(trouble...)
	r.at = time.Now()
	return r, nil
}

func scrape(ctx context.Context, n *lab.Node) ([]metrics.Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	status, body, err := n.Get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("/metrics answers %d", status)
	}
	return metrics.Parse(bytes.NewReader(body))
}

// Result is what `conduit demo -o json` prints. Counts of requests are the application's own; latencies, the share of
// mutual TLS and the bypasses are the mesh's.
type Result struct {
	Requests    int64     `json:"requests"`     // calls that ended
	SuccessRate float64   `json:"success_rate"` // 0..1
	RPS         float64   `json:"rps"`
	P50         float64   `json:"p50_ms"` // over all HTTP and gRPC requests, as the clients' proxies saw them
	P99         float64   `json:"p99_ms"`
	MTLSPct     float64   `json:"mtls_pct"` // 0..100, of the calls that crossed nodes
	Bypassed    int64     `json:"bypassed"` // connections to other pods that passed no proxy
	Protocols   Protocols `json:"protocols"`
}

// Protocols are requests by protocol; a request of TCP is a connection with a short conversation.
type Protocols struct {
	HTTP1 int64 `json:"http1"`
	HTTP2 int64 `json:"http2"`
	GRPC  int64 `json:"grpc"`
	TCP   int64 `json:"tcp"`
}

// summary is the difference of two readings.
type summary struct {
	Result
	failed  int64
	crossed int64
	errors  map[string]string // "web -> api http1": the last error
}

func summarise(before, after *reading) summary {
	s := summary{errors: map[string]string{}}
	grown := after.grown(before)
	edges := metrics.Edges(grown, "outbound")
	secured := 0.0
	for role := range calls {
		own := growth(before.calls[role], after.calls[role])
		for _, c := range own {
			s.add(role, c)
			secured += min(mtlsCalls(edges, role, c.Destination), float64(c.Crossed))
		}
	}
	var latency metrics.Histogram
	mtls, plain := 0.0, 0.0
	for _, e := range edges {
		latency.Merge(e.Latency)
		mtls += e.Calls[metrics.MTLS]
		plain += e.Calls[metrics.None]
	}
	crossed := float64(s.crossed)
	if after.gaps > before.gaps { // what is left of the mesh's figures can only be compared with itself
		secured, crossed = mtls, mtls+plain
	}
	if crossed > 0 {
		s.MTLSPct = 100 * secured / crossed
	}
	if latency.Count() > 0 {
		s.P50, s.P99 = latency.Quantile(0.50), latency.Quantile(0.99)
	}
	if s.Requests > 0 {
		s.SuccessRate = float64(s.Requests-s.failed) / float64(s.Requests)
		s.RPS = float64(s.Requests) / after.at.Sub(before.at).Seconds()
	}
	s.Bypassed = int64(metrics.Sum(grown, "conduit_sockets_bypassed_total", passedNoProxy))
	return s
}

// passedNoProxy: connections to the pod itself and the proxy's own are not meant to be steered, and refused ones went
// nowhere. Every other reason is traffic outside the mesh.
func passedNoProxy(labels map[string]string) bool {
	switch labels["reason"] {
	case "local", "proxy", "refused", "inbound-refused":
		return false
	}
	return true
}

func (s *summary) add(role string, c demoapp.Call) {
	n := c.OK + c.Failed
	s.Requests += n
	s.failed += c.Failed
	s.crossed += c.Crossed
	switch c.Protocol {
	case "http1":
		s.Protocols.HTTP1 += n
	case "http2":
		s.Protocols.HTTP2 += n
	case "grpc":
		s.Protocols.GRPC += n
	case "tcp":
		s.Protocols.TCP += n
	}
	if c.Failed > 0 {
		s.errors[role+" -> "+c.Destination+" "+c.Protocol] = c.LastError
	}
}

// growth adds a role's pods up, by destination and protocol, since before.
func growth(before, after []demoapp.Call) []demoapp.Call {
	type key struct{ destination, protocol string }
	sum := map[key]*demoapp.Call{}
	var order []key
	take := func(all []demoapp.Call, sign int64) {
		for _, c := range all {
			k := key{c.Destination, c.Protocol}
			if sum[k] == nil {
				sum[k] = &demoapp.Call{Destination: c.Destination, Protocol: c.Protocol}
				order = append(order, k)
			}
			sum[k].OK += sign * c.OK
			sum[k].Failed += sign * c.Failed
			sum[k].Crossed += sign * c.Crossed
			if c.LastError != "" {
				sum[k].LastError = c.LastError
			}
		}
	}
	take(before, -1)
	take(after, 1)
	out := make([]demoapp.Call, 0, len(order))
	for _, k := range order {
		out = append(out, *sum[k])
	}
	return out
}

// mtlsCalls is how many calls the mesh carried by mutual TLS from one role to another.
func mtlsCalls(edges []*metrics.Edge, from, to string) float64 {
	n := 0.0
	for _, e := range edges {
		if e.Source == namespace+"/"+from && e.Destination == namespace+"/"+to {
			n += e.Calls[metrics.MTLS]
		}
	}
	return n
}
