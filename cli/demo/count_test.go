package demo

import (
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/cli/demoapp"
	"conduit.io/conduit/cli/metrics"
)

func meshReading(t *testing.T, at time.Time, text string, calls map[string][]demoapp.Call) *reading {
	t.Helper()
	samples, err := metrics.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return &reading{at: at, mesh: samples, calls: calls}
}

func TestSummarise(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	before := meshReading(t, start, `
request_total{direction="outbound",src="demo/web",dst="demo/api",protocol="http1",tls="mtls"} 10
conduit_sockets_bypassed_total{pod="demo/web-0",reason="unseen"} 1
`, map[string][]demoapp.Call{"web": {{Destination: "api", Protocol: "http1", OK: 20, Crossed: 10}}})
	after := meshReading(t, start.Add(10*time.Second), `
request_total{direction="outbound",src="demo/web",dst="demo/api",protocol="http1",tls="mtls"} 58
request_total{direction="outbound",src="demo/web",dst="demo/api",protocol="http1",tls="local"} 50
response_latency_ms_bucket{direction="outbound",src="demo/web",dst="demo/api",protocol="http1",tls="mtls",le="2"} 98
response_latency_ms_bucket{direction="outbound",src="demo/web",dst="demo/api",protocol="http1",tls="mtls",le="4"} 98
response_latency_ms_bucket{direction="outbound",src="demo/web",dst="demo/api",protocol="http1",tls="mtls",le="+Inf"} 98
tcp_open_total{direction="outbound",src="demo/web",dst="demo/cache",protocol="tcp",tls="mtls"} 9
conduit_sockets_bypassed_total{pod="demo/web-0",reason="unseen"} 1
conduit_sockets_bypassed_total{pod="demo/web-0",reason="local"} 100
conduit_sockets_bypassed_total{pod="demo/web-0",reason="proxy"} 100
conduit_sockets_bypassed_total{pod="demo/web-0",reason="refused"} 5
conduit_sockets_bypassed_total{pod="demo/web-0",reason="in-refused"} 5
conduit_sockets_bypassed_total{pod="demo/web-0",reason="down-open"} 2
conduit_sockets_bypassed_total{pod="demo/web-1",reason="unrouted"} 1
`, map[string][]demoapp.Call{"web": { // two pods
		{Destination: "api", Protocol: "http1", OK: 70, Crossed: 35}, {Destination: "cache", Protocol: "tcp", OK: 9, Failed: 1, Crossed: 3, LastError: "EOF"},
		{Destination: "api", Protocol: "http1", OK: 50, Crossed: 25},
	}})
	s := summarise(before, after)
	if s.Requests != 110 || s.failed != 1 || s.SuccessRate != 109.0/110 || s.RPS != 11 {
		t.Errorf("calls: %+v", s)
	}
	if s.Protocols != (Protocols{HTTP1: 100, TCP: 10}) {
		t.Errorf("protocols: %+v", s.Protocols)
	}
	// 50 calls to the API crossed and 48 were secured; 3 to the cache crossed and were (9 are more than crossed).
	if s.crossed != 53 || s.MTLSPct != 100*51.0/53 {
		t.Errorf("crossed %d, mtls %v", s.crossed, s.MTLSPct)
	}
	if s.P50 != 1 || s.Bypassed != 3 {
		t.Errorf("p50 %v, bypassed %d", s.P50, s.Bypassed)
	}
	if s.errors["web -> cache tcp"] != "EOF" || len(s.errors) != 1 {
		t.Errorf("errors: %v", s.errors)
	}
	after.resets = 1 // a proxy was killed: its own ratio is what is left
	if s := summarise(before, after); s.MTLSPct != 100 {
		t.Errorf("after a reset: %v", s.MTLSPct)
	}
}

func TestRows(t *testing.T) {
	for text, want := range map[string]int{"": 0, "\n": 1, "abc\n": 1, "12345\n": 1, "123456\n": 2, "\x1b[1m12345\x1b[0m\nx\n": 2} {
		if got := rows(text, 5); got != want {
			t.Errorf("%q: want %d, got %d", text, want, got)
		}
	}
}

func TestFindPlugins(t *testing.T) {
	_, err := findPlugins(t.TempDir(), func(string) string { return t.TempDir() })
	if err != nil && !strings.Contains(err.Error(), "for CNI 1.1.0") {
		t.Errorf("got %v", err)
	}
}
