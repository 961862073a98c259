package metrics

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"conduit.io/conduit/cli/output"
)

// Table renders edges. over is the length of the window, zero when it is not known (then there is no rate). With wide,
// the parts of the latency, counts and bytes are added.
func Table(edges []*Edge, over time.Duration, wide bool, style output.Style) *output.Table {
	t := &output.Table{Style: style,
		Head:  []string{"SOURCE", "DESTINATION", "PROTOCOL", "SUCCESS", "RPS", "P50", "P95", "P99", "MTLS"},
		Right: []bool{false, false, false, true, true, true, true, true, false},
	}
	if wide {
		t.Head = append(t.Head, "PROXY-P50", "PROXY-P99", "UPSTREAM-P50", "UPSTREAM-P99", "APP-P50", "APP-P99",
			"CALLS", "FAILED", "MTLS-CALLS", "LOCAL-CALLS", "PLAIN-CALLS", "OPEN", "READ", "WRITTEN")
		for range 14 {
			t.Right = append(t.Right, true)
		}
	}
	for _, e := range edges {
		success, paint := successCell(e, style)
		secured, securedPaint := securedCell(e, style)
		row := []string{e.Source, e.Destination, e.Protocol, success, rateCell(e.Total(), over),
			latencyCell(&e.Latency, 0.50), latencyCell(&e.Latency, 0.95), latencyCell(&e.Latency, 0.99), secured}
		if wide {
			for _, h := range []*Histogram{&e.Proxy, &e.Upstream, &e.Application} {
				row = append(row, latencyCell(h, 0.50), latencyCell(h, 0.99))
			}
			row = append(row, count(e.Total()), count(e.Failure), count(e.Calls[MTLS]), count(e.Calls[Local]),
				count(e.Calls[None]), count(e.Open), size(e.Read), size(e.Written))
		}
		t.Row(row...)
		t.Paint(3, paint)
		t.Paint(8, securedPaint)
	}
	return t
}

func successCell(e *Edge, s output.Style) (string, func(string) string) {
	rate, ok := e.SuccessRate()
	switch {
	case !ok:
		return "-", nil
	case rate == 1:
		return "100.00%", s.Good
	case rate >= 0.99:
		return Percent(rate), s.Warn
	}
	return Percent(rate), s.Bad
}

// Percent writes a share of 0..1 so that only a whole reads 100.00%.
func Percent(rate float64) string {
	if rate < 1 {
		rate = math.Min(rate, 0.9999)
	}
	return strconv.FormatFloat(rate*100, 'f', 2, 64) + "%"
}

// securedCell says how the edge's calls travelled. What stayed on its node was on no wire; plaintext is named by share.
func securedCell(e *Edge, s output.Style) (string, func(string) string) {
	mtls, local, none := e.Calls[MTLS], e.Calls[Local], e.Calls[None]
	switch {
	case none > 0 && mtls+local == 0:
		return "none", s.Warn
	case none > 0:
		return fmt.Sprintf("× %.0f%% none", math.Max(1, 100*none/e.Total())), s.Bad
	case mtls > 0 && local > 0:
		return "√ mtls + local", s.Good
	case mtls > 0:
		return "√ mtls", s.Good
	case local > 0:
		return "local", s.Good
	}
	return "-", nil
}

func rateCell(n float64, over time.Duration) string {
	if over <= 0 {
		return "-"
	}
	return strconv.FormatFloat(n/over.Seconds(), 'f', 1, 64)
}

func latencyCell(h *Histogram, q float64) string {
	ms := h.Quantile(q)
	if math.IsNaN(ms) {
		return "-"
	}
	return Milliseconds(ms)
}

// Milliseconds writes a latency for people, with about three digits.
func Milliseconds(ms float64) string {
	switch {
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 2, 64) + "ms"
	case ms < 100:
		return strconv.FormatFloat(ms, 'f', 1, 64) + "ms"
	case ms < 10_000:
		return strconv.FormatFloat(ms, 'f', 0, 64) + "ms"
	}
	return strconv.FormatFloat(ms/1000, 'f', 1, 64) + "s"
}

func count(n float64) string { return strconv.FormatFloat(n, 'f', 0, 64) }

func size(bytes float64) string {
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if bytes < 1024 {
			if unit == "B" {
				return count(bytes) + unit
			}
			return strconv.FormatFloat(bytes, 'f', 1, 64) + unit
		}
		bytes /= 1024
	}
	return strconv.FormatFloat(bytes, 'f', 1, 64) + "TiB"
}
