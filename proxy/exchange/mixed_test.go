package exchange_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h1"
	"conduit.io/conduit/proxy/h2"

	"golang.org/x/net/http2"
)

// h2ToH1 is an HTTP/2 client in front of an HTTP/1.1 server.
func h2ToH1() (n *flowtest.Net, h *exchangetest.Handler, client *exchangetest.H2, app *exchangetest.Peer) {
	n = flowtest.New()
	a, down := n.Pair()
	up, b := n.Pair()
	cl := h1.NewClient(up, exchange.ClientOptions{Clock: n})
	h = &exchangetest.Handler{Up: func(*exchange.Stream) exchange.Upstream { return cl }}
	h2.NewServer(down, h, exchange.ServerOptions{Clock: n})
	client, app = exchangetest.NewH2(a, true), exchangetest.NewPeer(b)
	client.Settings()
	n.Run()
	return n, h, client, app
}

func TestH2ToH1(t *testing.T) {
	n, h, client, app := h2ToH1()
	client.Headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/p", "host", "only-host", "cookie", "a=1", "x", "y", "cookie", "b=2")
	client.Body(1, false, []byte("abc"))
	client.Body(1, false, nil)
	client.Headers(1, true, "x-sum", "7", "conduit-x", "forged")
	n.Run()
	want := "POST /p HTTP/1.1\r\nhost: only-host\r\ncookie: a=1; b=2\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"
	if got := app.Take(); got != want {
		t.Errorf("app got %q, want %q", got, want)
	}
	app.Send("HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: v\r\nContent-Length: 9\r\n\r\n")
	n.Run()
	body, end := client.Bytes(1)
	if string(body) != "ok" || !end || client.Field(1, 1, "x-t") != "v" || client.Field(1, 1, "content-length") != "" {
		t.Errorf("client got %q %v %v", body, end, client.Find(http2.FrameHeaders, 1))
	}
	if hd := fmt.Sprint(client.Find(http2.FrameHeaders, 1)[0].Fields); strings.Contains(hd, "hop") || strings.Contains(hd, "transfer") || strings.Contains(hd, "connection") {
		t.Errorf("client got %s", hd)
	}
	if h.Open != 0 || len(h.Log[0].Trailers) != 1 || !app.Over() || len(client.Errs) > 0 {
		t.Errorf("log %v, over %v, errors %v", h.Log, app.Over(), client.Errs)
	}
}

func TestTruncatedH1BecomesReset(t *testing.T) {
	n, h, client, app := h2ToH1()
	client.Headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "h")
	n.Run()
	app.Send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
	n.Run()
	app.C.Close()
	n.Run()
	_, end := client.Bytes(1)
	if f := client.Find(http2.FrameRSTStream, 1); len(f) != 1 || f[0].Code != http2.ErrCodeInternal || end || h.Log[0].Reason != mesh.ReasonUpstreamReset {
		t.Errorf("client got %v, log %v", f, h.Log)
	}
}

func TestHandlerEndsStreams(t *testing.T) {
	c := newChain(true, "h1")
	var held *exchange.Stream
	c.near.OnRequest = func(s *exchange.Stream) { held = s }
	c.do("GET / HTTP/1.1\r\nhost: h\r\n\r\n", "")
	ref := held.Ref()
	held.Reset(mesh.ReasonOverload)
	c.n.Run()
	if ref.Live() || !c.client.IsReset() || c.near.Log[0].Reason != mesh.ReasonOverload {
		t.Errorf("live %v, client %v, log %v", ref.Live(), c.client.Err, c.near.Log)
	}
	held.Fail(503, mesh.ReasonOverload, "late") // a stale call does nothing
	held.Respond(200, nil, nil)
	held.Reset(mesh.ReasonTimeout)
	if len(c.near.Log) != 1 {
		t.Error("a stream ended twice")
	}

	c = newChain(false, "h1") // the handler gives up on a response
	c.near.OnResponse = func(s *exchange.Stream) { s.Fail(504, mesh.ReasonTimeout, "too late") }
	_, got := c.do("GET / HTTP/1.1\r\nhost: h\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")
	if !strings.HasPrefix(got, "HTTP/1.1 504 ") || !strings.HasSuffix(got, "\r\ncontent-length: 9\r\n\r\ntoo late\n") || strings.Count(got, "HTTP/1.1") != 1 {
		t.Errorf("client got %q", got)
	}
	if c.near.Open+c.far.Open != 0 || c.far.Log[0].Reason != mesh.ReasonDownstreamReset {
		t.Errorf("near %v, far %v", c.near.Log, c.far.Log)
	}
	c.near.OnResponse = nil
	if !c.app.Ended {
		t.Error("the server was not told")
	}
}

func TestLinkBreaks(t *testing.T) {
	c := newChain(false, "h1")
	c.do("GET / HTTP/1.1\r\nhost: h\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
	c.mid[0].Abort()
	c.n.Run()
	if !c.client.Over() || !c.app.Ended || c.near.Log[0].Reason != mesh.ReasonUpstreamReset || c.far.Log[0].Reason != mesh.ReasonDownstreamReset {
		t.Errorf("client over %v, app ended %v, near %v, far %v", c.client.Over(), c.app.Ended, c.near.Log, c.far.Log)
	}
	if c.near.Open+c.far.Open != 0 || c.link.Room() != 0 {
		t.Error("streams stay")
	}
}

func TestReasonCrossesLink(t *testing.T) {
	for _, reason := range []mesh.Reason{mesh.ReasonConnect, mesh.ReasonOverload} {
		c := newChain(false, "h1")
		c.far.OnRequest = func(s *exchange.Stream) { s.Fail(503, reason, "sorry") }
		_, got := c.do("GET / HTTP/1.1\r\nhost: h\r\n\r\n", "")
		if !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "conduit-reason: "+string(reason)+"\r\n") {
			t.Errorf("client got %q", got)
		}
		if lost := reason == mesh.ReasonConnect; (c.near.Losses == 1) != lost { // nothing was begun: it may go elsewhere
			t.Errorf("%s: %d losses", reason, c.near.Losses)
		}
	}
}

// TestIdleConnectionsAreSmall measures what a connection costs before its first request.
func TestIdleConnectionsAreSmall(t *testing.T) {
	const count = 2000
	n := flowtest.New()
	pool := exchange.NewPool()
	h := &exchangetest.Handler{}
	so := exchange.ServerOptions{Clock: &clock{}, Pool: pool}
	keep := make([]any, 0, 2*count)
	for name, open := range map[string]func() any{
		"h1": func() any { return h1.NewServer(&hole{}, h, so) },
		"h2": func() any { return h2.NewServer(&hole{}, h, so) },
	} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for range count {
			keep = append(keep, open())
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		per := int(after.HeapAlloc-before.HeapAlloc) / count
		t.Logf("%s: %d bytes per idle connection", name, per)
		if per > 1100 {
			t.Errorf("%s: %d bytes per idle connection", name, per)
		}
	}
	runtime.KeepAlive(keep)
	n.Run()
}
