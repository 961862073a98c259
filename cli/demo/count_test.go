package demo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"conduit.io/conduit/cli/demoapp"
	"conduit.io/conduit/cli/metrics"
)

// meshReading is a reading of two nodes with equal figures.
func meshReading(t *testing.T, at time.Time, text string, calls map[string][]demoapp.Call) *reading {
	t.Helper()
	samples, err := metrics.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return &reading{at: at, mesh: [][]metrics.Sample{samples, samples}, calls: calls}
}

func TestSummarise(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	before := meshReading(t, start, `
request_total{direction="outbound",src="demo/web",dst="demo/api",protocol="http1",tls="mtls"} 10
conduit_sockets_bypassed_total{pod="demo/web-0",reason="unseen"} 1
`, map[string][]demoapp.Call{"web": {{Destination: "api", Protocol: "http1", OK: 20, Crossed: 12}}})
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
conduit_sockets_bypassed_total{pod="demo/web-0",reason="inbound-refused"} 5
conduit_sockets_bypassed_total{pod="demo/web-0",reason="down-open"} 2
conduit_sockets_bypassed_total{pod="demo/web-1",reason="unrouted"} 1
`, map[string][]demoapp.Call{"web": { // two pods
		{Destination: "api", Protocol: "http1", OK: 70, Crossed: 60}, {Destination: "cache", Protocol: "tcp", OK: 9, Failed: 1, Crossed: 3, LastError: "EOF"},
		{Destination: "api", Protocol: "http1", OK: 50, Crossed: 50},
	}})
	s := summarise(before, after)
	if s.Requests != 110 || s.failed != 1 || s.SuccessRate != 109.0/110 || s.RPS != 11 {
		t.Errorf("calls: %+v", s)
	}
	if s.Protocols != (Protocols{HTTP1: 100, TCP: 10}) {
		t.Errorf("protocols: %+v", s.Protocols)
	}
	// Of 100 calls to the API 98 crossed, and 96 were secured; 3 to the cache crossed, and were (18 are more than that).
	if s.crossed != 101 || s.MTLSPct != 100*99.0/101 {
		t.Errorf("crossed %d, mtls %v", s.crossed, s.MTLSPct)
	}
	if s.P50 != 1 || s.Bypassed != 6 {
		t.Errorf("p50 %v, bypassed %d", s.P50, s.Bypassed)
	}
	if s.errors["web -> cache tcp"] != "EOF" || len(s.errors) != 1 {
		t.Errorf("errors: %v", s.errors)
	}
	after.gaps = 1 // a proxy was killed: its own ratio is what is left
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

// TestLiveRedraws: each picture replaces the one before it, and nothing else.
func TestLiveRedraws(t *testing.T) {
	var out bytes.Buffer
	o := Options{Out: &out, Live: true, Getenv: func(string) string { return "" }}
	s := newScreen(&o, func() { t.Error("cancelled") })
	at := time.Unix(1_700_000_000, 0)
	r := meshReading(t, at, `request_total{direction="outbound",src="demo/web",dst="demo/api",protocol="http1",tls="mtls"} 10`, nil)
	zero := meshReading(t, at.Add(-time.Second), "", nil)
	s.step(time.Now(), "kept")
	s.live(zero, r, summary{}, nil)
	first := out.String()
	if !strings.Contains(first, "demo/api") || strings.Contains(first, "\x1b") {
		t.Errorf("first picture: %q", first)
	}
	out.Reset()
	s.live(zero, r, summary{}, errors.New("node-a is silent"))
	picture := strings.SplitN(first, "\n", 2)[1]
	if want := fmt.Sprintf("\x1b[%dA\r\x1b[J", rows(picture, 80)); !strings.HasPrefix(out.String(), want) {
		t.Errorf("want %q first, got %q", want, out.String())
	}
	if !strings.Contains(out.String(), "node-a is silent") {
		t.Errorf("second picture: %q", out.String())
	}
	s.drawn = 30 // taller than the terminal
	out.Reset()
	s.erase()
	if out.String() != "\x1b[H\x1b[2J" {
		t.Errorf("got %q", out.String())
	}
}

// TestNarrowTerminal: the table fits 80 columns, and elsewhere keeps all of its own.
func TestNarrowTerminal(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	labels := `{direction="outbound",src="demo/loadgenerator",dst="demo/catalogue-books",protocol="http1",tls=`
	r := meshReading(t, at, "request_total"+labels+`"mtls"} 10`+"\nrequest_total"+labels+`"local"} 10`, nil)
	zero := meshReading(t, at.Add(-time.Second), "", nil)
	for _, live := range []bool{true, false} {
		var out bytes.Buffer
		s := newScreen(&Options{Out: &out, Live: live, Getenv: func(string) string { return "" }}, func() {})
		s.table(&out, zero, r)
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(line) - 1; live && n > 80 {
				t.Errorf("%d columns: %q", n, line)
			}
		}
		if strings.Contains(out.String(), "P95") == live || !strings.Contains(out.String(), "√ mtls + local") {
			t.Errorf("live %v: %q", live, out.String())
		}
	}
}

// TestNobodyReads: when the output is closed, the demo is told to end.
func TestNobodyReads(t *testing.T) {
	r, w := io.Pipe()
	r.Close()
	told := false
	o := Options{Out: w, Getenv: func(string) string { return "" }}
	newScreen(&o, func() { told = true }).step(time.Now(), "step")
	if !told {
		t.Error("it goes on")
	}
}

// TestFindPlugins: directories are tried in order, old plugins are passed over, and said to be old.
func TestFindPlugins(t *testing.T) {
	plugin := func(dir, versions string) {
		for _, name := range plugins {
			script := "#!/bin/sh\n[ $CNI_COMMAND = VERSION ] && echo '{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[" + versions + "]}'\n"
			if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	bin, old, good, empty := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	plugin(old, `"0.4.0","1.0.0"`)
	plugin(good, `"1.0.0","1.1.0"`)
	env := func(dirs ...string) func(string) string {
		return func(string) string { return strings.Join(dirs, ":") }
	}
	if dir, err := findPlugins(bin, env(empty, old, good)); err != nil || dir != good {
		t.Errorf("want %s, got %s (%v)", good, dir, err)
	}
	if err := os.Mkdir(filepath.Join(bin, "cni"), 0o755); err != nil {
		t.Fatal(err)
	}
	plugin(filepath.Join(bin, "cni"), `"1.1.0"`)
	if dir, err := findPlugins(bin, env(good)); err != nil || dir != filepath.Join(bin, "cni") {
		t.Errorf("want the one beside the programs, got %s (%v)", dir, err)
	}
	if err := usable(old); err == nil || !strings.Contains(err.Error(), "too old: it supports CNI 0.4.0, 1.0.0") {
		t.Errorf("old: %v", err)
	}
	if err := usable(empty); !os.IsNotExist(err) {
		t.Errorf("empty: %v", err)
	}
}
