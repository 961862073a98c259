package link_test

import (
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// slowApp answers at addr after a delay.
func slowApp(t *testing.T, addr string, delay time.Duration) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: &p, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-time.After(delay)
		for k := range r.Header {
			if strings.HasPrefix(k, "Conduit-") {
				t.Errorf("the application got %s", k)
			}
		}
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

// milliseconds adds the samples up whose name is that one, and whose labels contain all words.
func milliseconds(t *testing.T, text, name string, words ...string) float64 {
	t.Helper()
	sum := 0.0
lines:
	for l := range strings.Lines(text) {
		if !strings.HasPrefix(l, name+"{") {
			continue
		}
		for _, w := range words {
			if !strings.Contains(l, w) {
				continue lines
			}
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(l[strings.LastIndexByte(l, ' ')+1:]), 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// The client's proxy learns from the server's what of its wait was the application's.
func TestPartsOverTheMesh(t *testing.T) {
	n1, n2 := pair(t)
	const n, delay = 4, 20.0 // requests of each version, and ms
	slowApp(t, webIP+":8080", delay*time.Millisecond)
	for _, h2 := range []bool{false, true} {
		c := httpClient(t, h2)
		for range n {
			_, _, h := get(t, c, "http://"+httpSvc+"/a")
			for k := range h {
				if strings.HasPrefix(k, "Conduit-") {
					t.Errorf("the client got %s", k)
				}
			}
		}
		proto := `protocol="` + map[bool]string{false: "http1", true: "http2"}[h2] + `"`
		out := func(name, part string) float64 {
			return milliseconds(t, n1.stats(), name, `direction="outbound"`, proto, part)
		}
		upstream, app := out("conduit_latency_part_ms_sum", `part="upstream"`), out("conduit_upstream_part_ms_sum", `part="application"`)
		all := out("conduit_upstream_part_ms_sum", "")
		// Every response has a note: they come less often than once in 10 ms.
		if k := out("conduit_upstream_part_ms_count", `part="application"`); k != n {
			t.Errorf("%s: %v notes, want %d", proto, k, n)
		}
		if app < n*delay || app > upstream || all < upstream-0.001 || all > upstream+0.001 {
			t.Errorf("%s: upstream %v ms, of which the application %v; its parts add up to %v", proto, upstream, app, all)
		}
	}
	if got := milliseconds(t, n2.stats(), "conduit_latency_part_ms_sum", `direction="inbound"`, `part="upstream"`); got < 2*n*delay {
		t.Errorf("the server's proxy says %v ms", got)
	}
	// The first connection is in the sample: the client's at one end, the link at the other.
	for _, x := range []*testNode{n1, n2} {
		if got := milliseconds(t, x.stats(), "conduit_accept_queue_ms_count"); got == 0 {
			t.Error("no connection was asked how long it waited")
		}
	}
}

// The deadline of a call holds over the mesh: the client is told, and the application's call is cancelled.
func TestDeadlineOverTheMesh(t *testing.T) {
	n1, _ := pair(t)
	gone := make(chan struct{}, 1)
	l, err := net.Listen("tcp", webIP+":8080")
	if err != nil {
		t.Fatal(err)
	}
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: &p, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		gone <- struct{}{}
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+httpSvc+"/a/b", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "Grpc-Timeout": {"100m"}}
	res, err := httpClient(t, true).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.Header.Get("Grpc-Status") != "4" || res.Header.Get("Conduit-Reason") != "timeout" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the application never learnt that nobody waits")
	}
	n1.want(`response_total{direction="outbound",src="shop/client",dst="shop/web",protocol="grpc",tls="mtls",route="default",` +
		`classification="failure",class="2xx",grpc_status_code="4",reason="timeout"} 1`)
}
