package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/leak"
	"conduit.io/conduit/tests/load/backend"
	"conduit.io/conduit/tests/load/drive"
	"conduit.io/conduit/tests/load/engine"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m)) }

// startBackend serves until the test has ended.
func startBackend(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan int)
	go func() {
		done <- run(ctx, []string{"backend", "--address", "127.0.0.1:0"}, w, io.Discard)
		w.Close()
	}()
	line := make([]byte, 64)
	n, err := r.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if code := <-done; code != exitOK {
			t.Errorf("the backend ended with %d", code)
		}
	})
	return strings.TrimSpace(strings.TrimPrefix(string(line[:n]), "listening on "))
}

// load runs `load run` against addr and returns its JSON.
func load(t *testing.T, wantCode int, addr string, flags ...string) *drive.Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), append([]string{"run", "--target", addr, "-o", "json"}, flags...), &stdout, &stderr)
	res := &drive.Result{}
	if err := json.Unmarshal(stdout.Bytes(), res); err != nil {
		t.Fatalf("%v\n%s\n%s", err, &stdout, &stderr)
	}
	if code != wantCode {
		t.Fatalf("exit status %d instead of %d: %s\n%+v", code, wantCode, &stderr, res.Failures)
	}
	if res.Sent != res.Completed+res.Failed-res.Failures["unsent"] {
		t.Errorf("%d sent, %d completed, %d failed", res.Sent, res.Completed, res.Failed)
	}
	return res
}

func TestEveryPath(t *testing.T) {
	addr := startBackend(t)
	for _, tc := range []struct {
		name  string
		flags string
		h1    bool
		least uint64 // bytes that have to be moved in one direction
	}{
		{"root", "--path /", true, 100 * 128},
		{"empty", "--path /bytes/0", true, 0},
		{"large", "--path /bytes/300000", true, 100 * 300000},
		{"upload", "--path /upload --body 200000", true, 100 * 200000},
		{"stream", "--path /stream/20/3000", true, 100 * 60000},
		{"echo", "--path /echo --body 150000", true, 200 * 150000},
		{"slow", "--path /slow/5", true, 0},
		{"head", "--path /bytes/100 --method HEAD", true, 0},
		{"unique", "--unique", true, 0},
		{"grpc", "--protocol grpc --unique --body 100", false, 0},
		{"grpc large", "--protocol grpc --body 200000", false, 200 * 200000},
		{"grpc stream", "--protocol grpc --path /stream/10/3000", false, 100 * 30000},
		{"grpc slow", "--protocol grpc --path /slow/5", false, 0},
	} {
		flags := append(strings.Fields(tc.flags), "--requests", "100", "--connections", "3")
		t.Run(tc.name, func(t *testing.T) {
			check := func(flags ...string) {
				t.Helper()
				res := load(t, exitOK, addr, flags...)
				if res.Completed != 100 || res.BytesIn+res.BytesOut < tc.least {
					t.Errorf("%v: %+v", flags, res)
				}
			}
			check(append(flags, "--streams", "7")...)
			if tc.h1 {
				check(append(flags, "--protocol", "http1")...)
			}
		})
	}
}

func TestFailuresHaveReasons(t *testing.T) {
	addr := startBackend(t)
	for flags, want := range map[string]string{
		"--path /nowhere --expect -2":                        "status-404",
		"--path /bytes/10 --expect 11":                       "short-body",
		"--path /bytes/10 --expect 9":                        "long-body",
		"--path /reset":                                      "reset-INTERNAL_ERROR",
		"--path /reset --protocol http1":                     "connection-reset",
		"--path /slow/60000 --timeout 50ms":                  "timeout",
		"--path /slow/60000 --timeout 50ms --body 1000":      "timeout",
		"--protocol http1 --path /slow/60000 --timeout 50ms": "timeout",
	} {
		res := load(t, exitError, addr, append(strings.Fields(flags), "--requests", "20", "--connections", "2")...)
		if res.Failures[want] != 20 || res.Failed != 20 {
			t.Errorf("%s: %v instead of 20 times %s", flags, res.Failures, want)
		}
	}
}

func TestChurnLosesNothing(t *testing.T) {
	addr := startBackend(t)
	for _, proto := range []string{"h2c", "http1", "grpc"} {
		res := load(t, exitOK, addr, "--protocol", proto, "--mode", "open", "--rate", "2000", "--requests", "1000", "--connections", "5", "--churn", "200", "--path", "/bytes/100", "--unique")
		if res.Completed != 1000 || res.DialErrors > 0 {
			t.Errorf("%s: %+v", proto, res)
		}
	}
	if res := load(t, exitOK, addr, "--requests", "1", "--path", "/stats"); res.Completed != 1 {
		t.Errorf("%+v", res)
	}
}

func TestOpenLoopKeepsItsRate(t *testing.T) {
	addr := startBackend(t)
	res := load(t, exitOK, addr, "--mode", "open", "--rate", "1000", "--requests", "500", "--connections", "4")
	if res.Completed != 500 || res.Seconds < 0.499 { // the last is to start after 499 ms
		t.Errorf("%d completed in %v s", res.Completed, res.Seconds)
	}
}

// Bursts keep the rate: the last of 500 requests is to start with the burst at 400 ms.
func TestBurstsKeepTheRate(t *testing.T) {
	addr := startBackend(t)
	flags := strings.Fields("--mode open --rate 1000 --requests 500 --connections 4 --burst 100")
	if res := load(t, exitOK, addr, flags...); res.Completed != 500 || res.Seconds < 0.4 {
		t.Errorf("%d completed in %v s", res.Completed, res.Seconds)
	}
}

// A target that stalls once makes those requests slow that were to start meanwhile, although they were not sent.
func TestLatencyIsFromTheIntendedStart(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const stall = 300 * time.Millisecond
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 4096)
		for n := 0; ; n++ {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if n == 50 {
				timer := time.NewTimer(stall)
				<-timer.C
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
		}
	}()
	flags := []string{"--protocol", "http1", "--requests", "600", "--expect", "0"}
	res := load(t, exitOK, ln.Addr().String(), append(flags, "--mode", "open", "--rate", "1000")...)
	// Requests 50 to 350 were to start during the stall: every second one of the 600 waited, 150 ms on average.
	if res.Latency.Max < us(stall) || res.Latency.P90 < us(stall/2) || res.Late < 250 {
		t.Errorf("%d late, %+v", res.Late, res.Latency)
	}
}

func us(d time.Duration) float64 { return float64(d.Microseconds()) }

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args, want string
		code       int
	}{
		{"", "give a command", exitUsage},
		{"fly", `unknown command "fly"`, exitUsage},
		{"run", "--target is missing", exitUsage},
		{"run --target 127.0.0.1:1 x", `unexpected argument "x"`, exitUsage},
		{"run --target 127.0.0.1:1 --protocol spdy", `"spdy" is not`, exitUsage},
		{"run --target 127.0.0.1:1 --mode open", "rate 0", exitUsage},
		{"run --target 127.0.0.1:1 --mode open --rate 5 --burst -1", "burst -1", exitUsage},
		{"run --target 127.0.0.1:1 --rate 7", "--rate needs --mode open", exitUsage},
		{"run --target 127.0.0.1:1 --protocol http1 --streams 2", "one request at a time", exitUsage},
		{"run --target 127.0.0.1:1 -o xml", "table or json", exitUsage},
		{"run --target 127.0.0.1:1 --duration -1s", "neither a duration", exitUsage},
		{"run --target nonsense", "--target", exitUsage},
		{"run --target 127.0.0.1:1", "connection refused", exitError},
		{"backend --address 127.0.0.1:99999", "--address", exitUsage},
		{"backend --what", "-what", exitUsage},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), strings.Fields(tc.args), &stdout, &stderr)
		if code != tc.code || !strings.Contains(stderr.String(), tc.want) || stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("load %s: %d, %q", tc.args, code, &stderr)
		}
	}
	for _, args := range []string{"--help", "run --help", "backend -h"} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), &stdout, &stderr); code != exitOK || stderr.Len() > 0 || !strings.Contains(stdout.String(), "usage: load") {
			t.Errorf("load %s: %d, %q, %q", args, code, &stdout, &stderr)
		}
	}
}

func TestInterruptedLoadReports(t *testing.T) {
	addr := startBackend(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	res, err := drive.Run(ctx, drive.Config{Target: netip.MustParseAddrPort(addr), Protocol: drive.H2C, Connections: 2, Streams: 2,
		Duration: time.Hour, Path: "/", Method: "GET", Timeout: time.Second, Expect: 128, Status: 200})
	if err != nil || res.Completed == 0 || res.Failed > 0 {
		t.Errorf("%v, %+v", err, res)
	}
}

func TestTable(t *testing.T) {
	addr := startBackend(t)
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"run", "--target", addr, "--path", "/x", "--requests", "3"}, &stdout, &stderr); code != exitError ||
		!strings.Contains(stdout.String(), "failed     3 status-404") || !strings.Contains(stderr.String(), "3 of 3 requests failed") {
		t.Errorf("%d\n%s%s", code, &stdout, &stderr)
	}
}

// What the backend counts is what was asked of it, and its connections are counted out when they end.
func TestBackendStats(t *testing.T) {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	loop, err := engine.New()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := backend.Serve(loop, ln); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- loop.Run() }()
	addr := ln.Addr().String()
	load(t, exitOK, addr, "--requests", "40", "--connections", "4")
	load(t, exitOK, addr, "--requests", "40", "--connections", "4", "--protocol", "http1")
	stats := func() string {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "GET /stats HTTP/1.1\r\nconnection: close\r\n\r\n")
		all, _ := io.ReadAll(c)
		return string(all)
	}
	got := stats()
	if !strings.Contains(got, `"connections":9,`) || !strings.Contains(got, `"requests":81}`) {
		t.Error(got)
	}
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(got, `"open":1,`); got = stats() {
		if time.Now().After(deadline) {
			t.Fatal(got)
		}
	}
	loop.Post(loop.Stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
