package metrics

import (
	"math"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/cli/output"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func parse(t *testing.T, text string) []Sample {
	t.Helper()
	s, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParse(t *testing.T) {
	got := parse(t, "# HELP a b\n\na 1\nb{} 2 1700000000\nc{x=\"1\",} +Inf\n"+
		`d{path="/a b{}\"\\\n", reason="x,y=\"z\""} -0.5e3`+"\n")
	want := []Sample{
		{Name: "a", Value: 1}, {Name: "b", Labels: map[string]string{}, Value: 2},
		{Name: "c", Labels: map[string]string{"x": "1"}, Value: math.Inf(1)},
		{Name: "d", Labels: map[string]string{"path": "/a b{}\"\\\n", "reason": `x,y="z"`}, Value: -500},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Sample{})); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"a", "a x", "a 1 2 3", `a{b="c} 1`, `a{b=c} 1`, `a{b="c" 1`, "{} 1", `a{b} 1`} {
		if _, err := Parse(strings.NewReader("ok 1\n" + bad)); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: want an error of line 2, got %v", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`a{b="c\"",d="e"} 1 2`)
	f.Add("a{")
	f.Fuzz(func(t *testing.T, text string) {
		samples, err := Parse(strings.NewReader(text))
		if err == nil {
			Edges(Since(samples, samples), "outbound")
		}
	})
}

func TestQuantile(t *testing.T) {
	inf := math.Inf(1)
	for _, tc := range []struct {
		name    string
		buckets map[float64]float64 // cumulative
		q, want float64
	}{
		{"empty", nil, 0.5, math.NaN()},
		{"no observation", map[float64]float64{1: 0, inf: 0}, 0.5, math.NaN()},
		{"middle of the first", map[float64]float64{10: 100, inf: 100}, 0.5, 5},
		{"end of the first", map[float64]float64{10: 100, inf: 100}, 1, 10},
		{"inside the second", map[float64]float64{1: 50, 3: 100, inf: 100}, 0.75, 2},
		{"on a boundary", map[float64]float64{1: 50, 3: 100, inf: 100}, 0.5, 1},
		{"empty buckets between", map[float64]float64{1: 10, 2: 10, 5: 10, 10: 20, inf: 20}, 0.75, 7.5},
		{"above all bounds", map[float64]float64{1: 50, 2: 60, inf: 100}, 0.99, 2},
		{"all above", map[float64]float64{1: 0, 2: 0, inf: 7}, 0.5, 2},
		{"only +Inf", map[float64]float64{inf: 7}, 0.5, 0},
		{"zero quantile", map[float64]float64{1: 0, 2: 10, inf: 10}, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var h Histogram
			for le, n := range tc.buckets {
				h.Add(le, n)
			}
			got := h.Quantile(tc.q)
			if math.IsNaN(tc.want) != math.IsNaN(got) || !math.IsNaN(got) && math.Abs(got-tc.want) > 1e-9 {
				t.Errorf("want %v, got %v", tc.want, got)
			}
		})
	}
	var h Histogram
	if h.AddLabel("x", 1) || h.AddLabel("NaN", 1) || !h.AddLabel("+Inf", 2) || h.Count() != 2 {
		t.Error("bad bounds were taken, or +Inf was not")
	}
}

func TestSince(t *testing.T) {
	before := parse(t, "a_total{x=\"1\"} 10\nb_total 7\ntcp_open_connections 5\n")
	now := parse(t, "a_total{x=\"1\"} 15\na_total{x=\"2\"} 4\nb_total 3\ntcp_open_connections 6\n")
	want := []float64{5, 4, 3, 6} // grown, new, restarted, gauge
	for i, s := range Since(before, now) {
		if s.Value != want[i] {
			t.Errorf("%s: want %v, got %v", s.series, want[i], s.Value)
		}
	}
}

// TestTotals: a killed proxy's counters begin again, may be absent for a while, and what was counted stays.
func TestTotals(t *testing.T) {
	var totals Totals
	for _, step := range []struct {
		text   string
		want   float64
		resets int
	}{{"a_total 10\ng 5\n", 10, 0}, {"a_total 12\ng 1\n", 12, 0}, {"", 12, 0}, {"a_total 3\n", 15, 1}, {"a_total 4\ng 1\n", 16, 1}} {
		totals.Add(parse(t, step.text))
		if got := Sum(totals.Samples(), "a_total", func(map[string]string) bool { return true }); got != step.want || totals.Resets != step.resets {
			t.Errorf("after %q: want %v and %d resets, got %v and %d", step.text, step.want, step.resets, got, totals.Resets)
		}
	}
	if n := len(totals.Samples()); n != 2 {
		t.Errorf("%d series", n)
	}
	for text, want := range map[string]float64{"g 5\n": 5, "": 0} {
		totals = Totals{}
		totals.Add(parse(t, "g 9\n"))
		totals.Add(parse(t, text))
		if got := totals.Samples()[0].Value; got != want {
			t.Errorf("gauge after %q: want %v, got %v", text, want, got)
		}
	}
}

func TestEdges(t *testing.T) {
	const o = `direction="outbound",src="n/a",dst="n/b",`
	samples := parse(t, `
request_total{`+o+`protocol="grpc",tls="mtls"} 8
request_total{`+o+`protocol="grpc",tls="local"} 2
response_total{`+o+`protocol="grpc",tls="mtls",classification="success",reason=""} 6
response_total{`+o+`protocol="grpc",tls="mtls",classification="failure",reason="timeout"} 2
tcp_open_total{`+o+`protocol="grpc",tls="mtls"} 1
tcp_open_total{`+o+`protocol="tcp",tls="none"} 3
tcp_close_total{`+o+`protocol="tcp",tls="none",reason=""} 2
tcp_close_total{`+o+`protocol="tcp",tls="none",reason="connect-failed"} 1
request_total{direction="inbound",src="n/a",dst="n/b",protocol="http1",tls="mtls"} 9
conduit_latency_part_ms_bucket{`+o+`protocol="grpc",tls="mtls",part="upstream",le="2"} 10
conduit_latency_part_ms_bucket{direction="inbound",src="n/a",dst="n/b",protocol="http1",tls="mtls",part="upstream",le="2"} 9
unrelated 1
`)
	edges := Edges(samples, "outbound")
	if len(edges) != 2 {
		t.Fatalf("%d edges", len(edges))
	}
	grpc, tcp := edges[0], edges[1]
	if rate, ok := grpc.SuccessRate(); grpc.Protocol != "grpc" || grpc.Total() != 10 || grpc.Calls[MTLS] != 8 || !ok || rate != 0.75 {
		t.Errorf("grpc: %+v", grpc)
	}
	if rate, ok := tcp.SuccessRate(); !tcp.Opaque() || tcp.Total() != 3 || tcp.Calls[None] != 3 || !ok || math.Abs(rate-2.0/3) > 1e-9 {
		t.Errorf("tcp: %+v", tcp)
	}
	if grpc.Upstream.Count() != 10 || grpc.Application.Count() != 0 { // some of it crossed a network
		t.Errorf("upstream %v, application %v", grpc.Upstream, grpc.Application)
	}
	if in := Edges(samples, "inbound"); len(in) != 1 || in[0].Application.Count() != 9 {
		t.Errorf("inbound: %+v", in)
	}
}

func TestCells(t *testing.T) {
	for rate, want := range map[float64]string{1: "100.00%", 0.99999: "99.99%", 0.5: "50.00%", 0: "0.00%"} {
		if got := Percent(rate); got != want {
			t.Errorf("Percent(%v): want %s, got %s", rate, want, got)
		}
	}
	for ms, want := range map[float64]string{0.123: "0.12ms", 12.34: "12.3ms", 250: "250ms", 12_345: "12.3s"} {
		if got := Milliseconds(ms); got != want {
			t.Errorf("Milliseconds(%v): want %s, got %s", ms, want, got)
		}
	}
	for want, tls := range map[string]map[string]float64{
		"√ mtls": {MTLS: 3}, "local": {Local: 3}, "√ mtls + local": {MTLS: 1, Local: 2}, "none": {None: 4},
		"× 1% none": {MTLS: 9999, None: 1}, "× 50% none": {Local: 1, None: 1}, "-": {},
	} {
		if got, _ := securedCell(&Edge{Calls: tls}, output.Style{}); got != want {
			t.Errorf("%v: want %q, got %q", tls, want, got)
		}
	}
	if got := rateCell(30, 4*time.Second); got != "7.5" {
		t.Errorf("rate: %s", got)
	}
}
