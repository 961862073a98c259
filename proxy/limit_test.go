package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// stuck says something, if there is something to say, and then no more until its client has gone.
type stuck struct {
	say  string
	gone chan struct{}
}

func newStuck(say string) *stuck { return &stuck{say, make(chan struct{}, 100)} }

func (s *stuck) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.say != "" {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		_, _ = io.WriteString(w, s.say)
		_ = http.NewResponseController(w).Flush()
	}
	<-r.Context().Done()
	s.gone <- struct{}{}
}

func (s *stuck) wantGone(t *testing.T) {
	t.Helper()
	select {
	case <-s.gone:
	case <-time.After(10 * time.Second):
		t.Error("the server never learnt that nobody waits")
	}
}

func limited(up, protocol string, more config) config {
	l := proxyTo(up, protocol)
	for k, v := range more {
		l[k] = v
	}
	return config{"listeners": []any{l}, "admin": "127.0.0.1:0"}
}

func wantMetric(t *testing.T, p *process, words ...string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; {
		m := metrics(t, p)
	lines:
		for l := range strings.Lines(m) {
			for _, w := range words {
				if !strings.Contains(l, w) {
					continue lines
				}
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no line with %q in\n%s", words, grep(m, "response_total"))
		}
	}
}

// A request that takes longer than allowed is answered 504, and its server is told to stop.
func TestRequestTimeout(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		s := newStuck("")
		protocol := map[bool]string{false: "http1", true: "http2"}[h2]
		p := startProxy(t, limited(serveHTTP(t, s), protocol, config{"timeout": "50ms"}))
		res, err := client(t, h2).Get("http://" + p.addrs[0] + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusGatewayTimeout || res.Header.Get("Conduit-Reason") != "timeout" {
			t.Errorf("%s: %d %v %q", protocol, res.StatusCode, res.Header, body)
		}
		s.wantGone(t)
		wantMetric(t, p, "response_total", `class="5xx"`, `reason="timeout"`, "} 1")
	}
}

// A response that has begun can only be broken off.
func TestRequestTimeoutInTheResponse(t *testing.T) {
	s := newStuck("some of it")
	p := startProxy(t, limited(serveHTTP(t, s), "http2", config{"timeout": "50ms"}))
	res, err := client(t, true).Get("http://" + p.addrs[0] + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err == nil || string(body) != s.say {
		t.Errorf("%q, %v", body, err)
	}
	s.wantGone(t)
	wantMetric(t, p, "response_total", `class="2xx"`, `reason="timeout"`, "} 1")
}

// A call's own deadline holds, also when neither its client nor its server thinks of it.
func TestGRPCDeadline(t *testing.T) {
	for name, say := range map[string]string{"unanswered": "", "begun": "\x00\x00\x00\x00\x00"} {
		s := newStuck(say)
		p := startProxy(t, limited(serveHTTP(t, s), "http2", nil))
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+p.addrs[0]+"/a/b", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "Grpc-Timeout": {"50m"}}
		res, err := client(t, true).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		end := res.Trailer
		if say == "" {
			end = res.Header // a response that has nothing else
		}
		if err != nil || res.StatusCode != 200 || string(body) != say || end.Get("Grpc-Status") != "4" || end.Get("Conduit-Reason") != "timeout" {
			t.Errorf("%s: %d %q %v, header %v, trailer %v", name, res.StatusCode, body, err, res.Header, res.Trailer)
		}
		s.wantGone(t)
		wantMetric(t, p, "response_total", `classification="failure"`, `grpc_status_code="4"`, `reason="timeout"`, "} 1")
	}
}

// A stream that is silent for too long is broken off, one on which bytes trickle is not, nor is a tunnel.
func TestIdleTimeout(t *testing.T) {
	const idle = time.Second
	s := newStuck("some of it")
	p := startProxy(t, limited(serveHTTP(t, s), "http2", config{"idle_timeout": idle.String()}))
	res, err := client(t, true).Get("http://" + p.addrs[0] + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err == nil || string(body) != s.say {
		t.Errorf("%q, %v", body, err)
	}
	s.wantGone(t)

	trickle := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(idle / 10)
		defer tick.Stop()
		for range 15 {
			<-tick.C
			_, _ = io.WriteString(w, "x")
			_ = http.NewResponseController(w).Flush()
		}
	}))
	p = startProxy(t, limited(trickle, "http2", config{"idle_timeout": idle.String()}))
	if res, err = client(t, true).Get("http://" + p.addrs[0] + "/"); err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err != nil || len(body) != 15 {
		t.Errorf("a response that trickles: %q, %v", body, err)
	}
}

// A tunnel has no end that a timeout could be for, but may be idle for too long.
func TestTunnelLimits(t *testing.T) {
	up := serveTCP(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	p := startProxy(t, limited(up, "detect", config{"timeout": "20ms", "idle_timeout": "1s"}))
	c := dial(t, p.addrs[0])
	tick := time.NewTicker(60 * time.Millisecond)
	defer tick.Stop()
	b := make([]byte, 1)
	for range 20 {
		if _, err := c.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("a tunnel in use: %v", err)
		}
		<-tick.C
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = c.SetReadDeadline(deadline)
	var timeout net.Error
	if _, err := c.Read(b); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("an idle tunnel: %v", err)
	}
	wantMetric(t, p, "tcp_close_total", `reason="timeout"`, "} 1")
}
