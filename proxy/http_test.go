package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// serveHTTP is a server for HTTP/1.1 and HTTP/2 without TLS.
func serveHTTP(t *testing.T, h http.Handler) string {
	t.Helper()
	l := listen(t)
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: h, Protocols: &p}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

func client(t *testing.T, h2 bool) *http.Client {
	t.Helper()
	var p http.Protocols
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	tr := &http.Transport{Protocols: &p, MaxIdleConnsPerHost: 64}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// mirror answers with what it was asked, and with the body.
func mirror(w http.ResponseWriter, r *http.Request) {
	http.NewResponseController(w).EnableFullDuplex() // else HTTP/1 bodies end where the response begins
	w.Header().Set("X-Proto", r.Proto)
	w.Header().Set("X-Path", r.URL.RequestURI())
	w.Header().Set("X-Host", r.Host)
	w.Header().Set("X-Seen", r.Header.Get("X-Sent"))
	w.Header().Set("Trailer", "X-Sum")
	sum := sha256.New()
	io.Copy(io.MultiWriter(w, sum), r.Body)
	w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
}

func TestHTTPVersions(t *testing.T) {
	up := serveHTTP(t, http.HandlerFunc(mirror))
	body := bytes.Repeat([]byte("0123456789"), 30000)
	for _, c := range []struct {
		protocol, upstream string
		h2                 bool
		want               string
	}{
		{"detect", "auto", false, "HTTP/1.1"},
		{"detect", "auto", true, "HTTP/2.0"},
		{"http1", "auto", false, "HTTP/1.1"},
		{"http2", "auto", true, "HTTP/2.0"},
		{"http1", "http2", false, "HTTP/2.0"},
		{"http2", "http1", true, "HTTP/1.1"},
		{"opaque", "auto", false, "HTTP/1.1"},
		{"opaque", "auto", true, "HTTP/2.0"},
	} {
		t.Run(fmt.Sprintf("%s to %s h2 %v", c.protocol, c.upstream, c.h2), func(t *testing.T) {
			l := proxyTo(up, c.protocol)
			l["upstream_protocol"] = c.upstream
			p := startProxy(t, config{"listeners": []any{l}})
			cl := client(t, c.h2)
			var wg sync.WaitGroup
			for i := 1; i <= 20; i++ { // not 0: an empty HTTP/1 response has no place for trailers
				wg.Go(func() { exchangeBody(t, cl, p.addrs[0], i, body[:i*len(body)/20], c.want) })
			}
			wg.Wait()
		})
	}
}

func exchangeBody(t *testing.T, cl *http.Client, addr string, i int, body []byte, proto string) {
	req, err := http.NewRequest("POST", fmt.Sprintf("http://%s/a/%d?x=%%20y", addr, i), bytes.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	req.Host = "app.example"
	req.Header.Set("X-Sent", fmt.Sprint(i))
	res, err := cl.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 || !bytes.Equal(got, body) {
		t.Errorf("%d: status %d, %d bytes of %d, %v", i, res.StatusCode, len(got), len(body), err)
	}
	h := res.Header
	if h.Get("X-Proto") != proto || h.Get("X-Path") != fmt.Sprintf("/a/%d?x=%%20y", i) || h.Get("X-Host") != "app.example" || h.Get("X-Seen") != fmt.Sprint(i) {
		t.Errorf("%d: %v", i, h)
	}
	if want := fmt.Sprintf("%x", sha256.Sum256(body)); res.Trailer.Get("X-Sum") != want {
		t.Errorf("%d: trailer %q, want %s", i, res.Trailer.Get("X-Sum"), want)
	}
}

func TestConduitFieldsAreStripped(t *testing.T) {
	up := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for k := range r.Header {
			if strings.HasPrefix(k, "Conduit-") {
				t.Errorf("the application got %s", k)
			}
		}
		w.Header().Set("Conduit-Reason", "forged")
	}))
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "detect")}})
	for _, h2 := range []bool{false, true} {
		req, _ := http.NewRequest("GET", "http://"+p.addrs[0]+"/", nil)
		req.Header.Set("Conduit-Client", "1.2.3.4:5")
		res, err := client(t, h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.Header.Get("Conduit-Reason") != "" {
			t.Error("the client got a reason that the application forged")
		}
	}
}

func TestUpstreamDown(t *testing.T) {
	l := listen(t)
	up := l.Addr().String()
	l.Close()
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "detect"), proxyTo(up, "opaque")}})
	for _, h2 := range []bool{false, true} {
		res, err := client(t, h2).Get("http://" + p.addrs[0] + "/")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 503 || res.Header.Get("Conduit-Reason") != "connect-failed" {
			t.Errorf("h2 %v: status %d, reason %q", h2, res.StatusCode, res.Header.Get("Conduit-Reason"))
		}
	}
	// The reset may come while Dial still waits to be told that the connection stands.
	c, err := net.Dial("tcp", p.addrs[1])
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("opaque: want a reset, got %v", err)
	}
}

func TestWebSocket(t *testing.T) {
	up := serveHTTP(t, websocket.Handler(func(c *websocket.Conn) { io.Copy(c, c) }))
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "detect")}})
	ws, err := websocket.Dial("ws://"+p.addrs[0]+"/echo", "", "http://app.example/")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.SetDeadline(time.Now().Add(20 * time.Second))
	for n := 1; n < 1<<18; n *= 7 {
		msg := strings.Repeat("w", n)
		if err := websocket.Message.Send(ws, msg); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, n)
		if m, err := io.ReadFull(ws, got); err != nil || string(got) != msg {
			t.Fatalf("%d bytes: %d came back, %v", n, m, err)
		}
	}
}

// A response that streams must not be held back, and a client that goes away must be seen by the server.
func TestStreamingAndCancel(t *testing.T) {
	gone := make(chan struct{}, 2)
	up := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "first\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	}))
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "detect")}})
	for _, h2 := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+p.addrs[0]+"/", nil)
		res, err := client(t, h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(res.Body).ReadString('\n')
		if err != nil || line != "first\n" {
			t.Errorf("h2 %v: %q, %v", h2, line, err)
		}
		cancel()
		res.Body.Close()
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			t.Errorf("h2 %v: the server never learnt that the client went away", h2)
		}
	}
}
