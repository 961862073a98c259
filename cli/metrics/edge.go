package metrics

import (
	"cmp"
	"maps"
	"slices"
)

// The values of the tls label: how a call travelled.
const (
	MTLS  = "mtls"  // mutually authenticated, to another node or from one
	Local = "local" // both pods on one node: one hop inside the proxy, nothing on a wire
	None  = "none"  // plaintext, to or from outside the mesh
)

// Edge is the traffic of one protocol from a source to a destination, as one side's proxy saw it. Counts are those of
// the samples it was made from: totals, or growth over a window.
type Edge struct {
	Source, Destination, Protocol string

	Calls            map[string]float64 // requests, or connections of opaque TCP, by tls
	Success, Failure float64            // ended calls
	Latency          Histogram          // of requests, milliseconds; empty for opaque TCP
	Proxy            Histogram          // of Latency, what that side's proxy took
	Upstream         Histogram          // what came after it, to the response's first byte
	Application      Histogram          // of Upstream, the application's part, where it is known
	Open             float64            // connections open now
	Read, Written    float64            // bytes of all its connections
}

// Opaque reports whether the edge's calls are TCP connections rather than requests.
func (e *Edge) Opaque() bool { return e.Protocol == "tcp" }

// Total is the number of calls.
func (e *Edge) Total() float64 {
	total := 0.0
	for _, n := range e.Calls {
		total += n
	}
	return total
}

// SuccessRate is the share of ended calls that succeeded, 0..1; ok is false when none ended.
func (e *Edge) SuccessRate() (rate float64, ok bool) {
	if n := e.Success + e.Failure; n > 0 {
		return e.Success / n, true
	}
	return 0, false
}

// Edges adds samples up to edges, in order of source, destination and protocol. direction is "outbound" (the client's
// side) or "inbound" (the server's). Pass samples through Since for the
// traffic of a window.
func Edges(samples []Sample, direction string) []*Edge {
	type key struct{ source, destination, protocol string }
	edges := map[key]*Edge{}
	for _, s := range samples {
		l := s.Labels
		if l["direction"] != direction || l["protocol"] == "" {
			continue
		}
		k := key{l["src"], l["dst"], l["protocol"]}
		e := edges[k]
		if e == nil {
			e = &Edge{Source: k.source, Destination: k.destination, Protocol: k.protocol, Calls: map[string]float64{}}
		}
		if e.add(s) {
			edges[k] = e
		}
	}
	for _, e := range edges {
		if direct := direction == "inbound" || e.Calls[Local] == e.Total(); direct && e.Application.Count() == 0 {
			e.Application = e.Upstream // nothing is between
		}
	}
	out := slices.Collect(maps.Values(edges))
	slices.SortFunc(out, func(a, b *Edge) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Destination, b.Destination),
			cmp.Compare(a.Protocol, b.Protocol))
	})
	return slices.DeleteFunc(out, func(e *Edge) bool { return e.Total() == 0 && !(e.Opaque() && e.Open > 0) })
}

// add reports whether the sample says something about an edge.
func (e *Edge) add(s Sample) bool {
	tls := s.Labels["tls"]
	switch s.Name {
	case "request_total":
		e.Calls[tls] += s.Value
	case "response_total":
		e.end(s.Labels["classification"] == "success", s.Value)
	case "response_latency_ms_bucket":
		e.Latency.AddLabel(s.Labels["le"], s.Value)
	case "conduit_latency_part_ms_bucket":
		switch s.Labels["part"] {
		case "proxy":
			e.Proxy.AddLabel(s.Labels["le"], s.Value)
		case "upstream":
			e.Upstream.AddLabel(s.Labels["le"], s.Value)
		}
	case "conduit_upstream_part_ms_bucket":
		if s.Labels["part"] == "application" {
			e.Application.AddLabel(s.Labels["le"], s.Value)
		}
	case "tcp_open_total":
		if e.Opaque() {
			e.Calls[tls] += s.Value
		}
	case "tcp_close_total":
		if e.Opaque() {
			e.end(s.Labels["reason"] == "", s.Value)
		}
	case "tcp_open_connections":
		e.Open += s.Value
	case "tcp_read_bytes_total":
		e.Read += s.Value
	case "tcp_write_bytes_total":
		e.Written += s.Value
	default:
		return false
	}
	return true
}

func (e *Edge) end(success bool, n float64) {
	if success {
		e.Success += n
	} else {
		e.Failure += n
	}
}
