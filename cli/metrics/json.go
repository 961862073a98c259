package metrics

import (
	"math"
	"time"
)

// EdgeJSON is an Edge for machines. Absent figures (no calls ended, no rate known, no latency) are null.
type EdgeJSON struct {
	Source      string             `json:"source"`
	Destination string             `json:"destination"`
	Protocol    string             `json:"protocol"`
	Calls       float64            `json:"calls"`  // requests; connections when protocol is tcp
	Failed      float64            `json:"failed"` // ended calls that failed
	SuccessRate *float64           `json:"success_rate"`
	RPS         *float64           `json:"rps"`
	P50         *float64           `json:"p50_ms"`
	P95         *float64           `json:"p95_ms"`
	P99         *float64           `json:"p99_ms"`
	Parts       PartsJSON          `json:"parts"`
	TLS         map[string]float64 `json:"tls"` // calls by mtls, local, none
	Open        float64            `json:"open_connections"`
	Read        float64            `json:"read_bytes"`
	Written     float64            `json:"write_bytes"`
}

// PartsJSON is what the proxy took of the latency, what came after it, and what of that was the application.
type PartsJSON struct {
	Proxy50       *float64 `json:"proxy_p50_ms"`
	Proxy99       *float64 `json:"proxy_p99_ms"`
	Upstream50    *float64 `json:"upstream_p50_ms"`
	Upstream99    *float64 `json:"upstream_p99_ms"`
	Application50 *float64 `json:"application_p50_ms"`
	Application99 *float64 `json:"application_p99_ms"`
}

// JSON converts edges, in their order. over is the length of the window, zero when there is none.
func JSON(edges []*Edge, over time.Duration) []EdgeJSON {
	out := make([]EdgeJSON, 0, len(edges))
	for _, e := range edges {
		j := EdgeJSON{Source: e.Source, Destination: e.Destination, Protocol: e.Protocol, Calls: e.Total(),
			Failed: e.Failure, TLS: e.Calls, Open: e.Open, Read: e.Read, Written: e.Written,
			P50: finite(e.Latency.Quantile(0.50)), P95: finite(e.Latency.Quantile(0.95)), P99: finite(e.Latency.Quantile(0.99))}
		j.Parts = PartsJSON{
			finite(e.Proxy.Quantile(0.50)), finite(e.Proxy.Quantile(0.99)), finite(e.Upstream.Quantile(0.50)),
			finite(e.Upstream.Quantile(0.99)), finite(e.Application.Quantile(0.50)), finite(e.Application.Quantile(0.99)),
		}
		if rate, ok := e.SuccessRate(); ok {
			j.SuccessRate = &rate
		}
		if over > 0 {
			j.RPS = finite(e.Total() / over.Seconds())
		}
		out = append(out, j)
	}
	return out
}

func finite(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}
