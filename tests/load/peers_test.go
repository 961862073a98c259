package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// plain speaks HTTP/1.1 or HTTP/2 without TLS: another implementation, to hold ours against.
func plain(h2 bool) (p http.Protocols) {
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	return p
}

func TestBackendForAnotherClient(t *testing.T) {
	addr := startBackend(t)
	for _, h2 := range []bool{false, true} {
		p := plain(h2)
		tr := &http.Transport{Protocols: &p}
		client := &http.Client{Transport: tr}
		do := func(method, path, kind, body string) (*http.Response, string) {
			t.Helper()
			req, _ := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, strings.NewReader(body))
			req.Header.Set("content-type", kind)
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			all, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			return res, string(all)
		}
		long := strings.Repeat("0123456789", 300_000)
		for path, want := range map[string]string{"/upload": "3000000", "/echo": long} {
			if res, got := do("POST", path, "text/plain", long); got != want || res.StatusCode != 200 || h2 != (res.ProtoMajor == 2) {
				t.Errorf("%s over %s: %d, %d bytes", path, res.Proto, res.StatusCode, len(got))
			}
		}
		if res, got := do("GET", "/stream/1000/5000", "", ""); len(got) != 5_000_000 || res.ContentLength != -1 {
			t.Errorf("%d bytes streamed, length %d", len(got), res.ContentLength)
		}
		if h2 {
			message := "\x00\x00\x00\x00\x05hello"
			res, got := do("POST", "/load.Echo/Unary", "application/grpc", message)
			if got != message || res.Trailer.Get("grpc-status") != "0" || res.Trailer.Get("x-trailer") == "" {
				t.Errorf("gRPC: %q, %v", got, res.Trailer)
			}
		}
		tr.CloseIdleConnections()
	}
}

func TestRunAgainstAnotherServer(t *testing.T) {
	p := plain(true)
	p.SetHTTP1(true)
	var mu sync.Mutex
	ids := map[string]bool{}
	srv := &http.Server{Protocols: &p, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		mu.Lock()
		ids[r.Header.Get("traceparent")+r.Header.Get("x-request-id")+r.URL.RawQuery] = true
		mu.Unlock()
		if r.Header.Get("content-type") == "application/grpc" {
			w.Header().Set("trailer", "grpc-status, x-trailer")
			w.Header().Set("content-type", "application/grpc")
			defer w.Header().Set("grpc-status", r.URL.Path[1:])
			defer w.Header().Set("x-trailer", "1")
		}
		fmt.Fprint(w, strconv.FormatInt(n, 10), " ", string(bytes.Repeat([]byte("x"), 200_000)))
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(ln)
	defer srv.Close()
	addr := ln.Addr().String()
	for _, flags := range []string{"--protocol h2c --streams 5 --body 100000 --expect 200007", "--protocol http1 --body 100000 --expect 200007",
		"--protocol grpc --streams 5 --path /0 --body 95 --expect 200004"} {
		mu.Lock()
		clear(ids)
		mu.Unlock()
		load(t, exitOK, addr, append(strings.Fields(flags), "--requests", "200", "--connections", "2", "--unique")...)
		mu.Lock()
		n := len(ids)
		mu.Unlock()
		if n != 200 {
			t.Errorf("%s: %d different requests of 200", flags, n)
		}
	}
	res := load(t, exitError, addr, "--protocol", "grpc", "--path", "/13", "--expect", "-2", "--requests", "5")
	if res.Failures["grpc-status-13"] != 5 {
		t.Errorf("%v", res.Failures)
	}
	res = load(t, exitError, addr, "--protocol", "h2c", "--requests", "5")
	if res.Failures["long-body"] != 5 {
		t.Errorf("%v", res.Failures)
	}
}
