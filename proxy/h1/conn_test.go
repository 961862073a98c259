package h1_test

import (
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/h1"
)

const get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"

func TestPipelining(t *testing.T) {
	for _, chunk := range []int{0, 1, 11} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		r.down.Chunk = chunk
		r.app.OnData = func(p []byte) {
			r.app.Got.Write(p)
			for strings.Contains(r.app.Got.String(), "\r\n\r\n") {
				head, rest, _ := strings.Cut(r.app.Take(), "\r\n\r\n")
				r.app.Got.WriteString(rest)
				path := strings.Fields(head)[1]
				r.app.Send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + path)
			}
		}
		for _, p := range "abcdefgh" {
			r.client.Send("GET /" + string(p) + " HTTP/1.1\r\nHost: h\r\n\r\n")
		}
		r.client.C.CloseWrite() // a client that has said all still gets every answer
		r.n.Run()
		var order string
		for _, part := range strings.SplitAfter(r.client.Take(), "\r\n\r\n/")[1:] {
			order += part[:1]
		}
		if order != "abcdefgh" || !r.client.Over() || r.closed != 1 || r.cl.Served() != 8 {
			t.Errorf("chunk %d: order %q, ended %v, served %d", chunk, order, r.client.Ended, r.cl.Served())
		}
	}
}

func TestPipelineIsBounded(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.down.Room = 64 << 10
	r.client.Send(get + strings.Repeat(get, 40000))
	r.n.Run()
	if !r.down.Paused || r.down.Received > 256<<10 {
		t.Errorf("paused %v after %d bytes", r.down.Paused, r.down.Received)
	}
}

func TestVersions(t *testing.T) {
	for _, tt := range []struct{ name, req, res, client string }{
		{"1.0 closes", "GET / HTTP/1.0\r\n\r\n", ok200, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"},
		{"close asked", "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", ok200,
			"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"},
		{"1.0 gets no chunks", "GET / HTTP/1.0\r\nHost: h\r\n\r\n",
			"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok"},
		{"1.0 gets no interim", "GET / HTTP/1.0\r\nHost: h\r\n\r\n", "HTTP/1.1 103 E\r\n\r\n" + ok200,
			"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"},
	} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		if _, got := r.do(tt.req, tt.res); got != tt.client || !r.client.Over() || r.client.Err != nil {
			t.Errorf("%s: got %q, ended %v", tt.name, got, r.client.Ended)
		}
	}
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	_, got := r.do("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", ok200)
	if !strings.Contains(got, "connection: keep-alive\r\n") || r.client.Ended {
		t.Errorf("1.0 keep-alive: got %q, ended %v", got, r.client.Ended)
	}
}

func TestCloseDelimited(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	_, got := r.do(get, "HTTP/1.1 200 OK\r\n\r\nabc")
	r.app.Send("def")
	r.n.Run()
	r.app.C.Close()
	r.n.Run()
	got += r.client.Take()
	if got != "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n" || r.client.Ended {
		t.Errorf("got %q, ended %v", got, r.client.Ended)
	}
	if r.cl.Room() != 0 || r.h.Log[0].Reason != "" {
		t.Errorf("room %d, log %v", r.cl.Room(), r.h.Log)
	}
}

func TestTruncatedResponse(t *testing.T) {
	for _, res := range []string{"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		r.do(get, res)
		r.app.C.Close()
		r.n.Run()
		if !r.client.Over() || r.h.Log[0].Reason != mesh.ReasonUpstreamReset {
			t.Errorf("ended %v, log %v", r.client.Ended, r.h.Log)
		}
	}
}

func TestServerGone(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.do(get, "")
	r.app.C.Close()
	r.n.Run()
	if got := r.client.Take(); !strings.HasPrefix(got, "HTTP/1.1 502 ") || !strings.Contains(got, "conduit-reason: upstream-reset\r\n") || r.client.Ended {
		t.Errorf("got %q", got)
	}
	if r.h.Losses != 1 || len(r.changes) != 1 || !r.changes[0] {
		t.Errorf("losses %d, changes %v", r.h.Losses, r.changes)
	}
}

func TestLostIsSentAgain(t *testing.T) {
	for _, req := range []string{get, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe"} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		up2, b2 := r.n.Pair()
		app2 := newPeer(b2)
		cl2 := h1.NewClient(up2, exchange.ClientOptions{Clock: r.n})
		r.h.OnLost = func(s *exchange.Stream, _ mesh.Reason) bool {
			s.Forward(cl2, nil)
			return true
		}
		first, _ := r.do(req, "")
		r.app.C.Abort()
		r.n.Run()
		if strings.HasSuffix(req, "he") {
			r.client.Send("llo")
			r.n.Run()
		}
		app2.Send(ok200)
		r.n.Run()
		got := app2.Take()
		if !strings.HasPrefix(got, first) || strings.Contains(req, "POST") && !strings.HasSuffix(got, "\r\n\r\nhello") || r.client.Take() != ok200 {
			t.Errorf("first %q, again %q", first, got)
		}
	}
}

func TestClientGone(t *testing.T) {
	for _, sent := range []string{get, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe"} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		r.client.Send(sent)
		r.n.Run()
		r.client.C.Abort()
		r.n.Run()
		if !r.app.Ended || r.h.Open != 0 || r.h.Log[0].Reason != mesh.ReasonDownstreamReset || r.closed != 1 {
			t.Errorf("%q: app ended %v, log %v, closed %d", sent, r.app.Ended, r.h.Log, r.closed)
		}
	}
}

func TestEarlyResponse(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	_, got := r.do("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 500\r\n\r\nhe", "HTTP/1.1 413 Large\r\ncontent-length: 0\r\n\r\n")
	r.client.Send(strings.Repeat("x", 498) + get)
	r.n.Run()
	if !strings.HasPrefix(got, "HTTP/1.1 413 ") || !r.client.HadEOF || r.client.IsReset() || len(r.h.Log) != 1 || r.cl.Room() != 0 {
		t.Errorf("got %q, EOF %v, log %v", got, r.client.HadEOF, r.h.Log)
	}
	r.n.Advance(3 * time.Second)
	if r.closed != 1 {
		t.Error("the connection lingers on")
	}
}

func TestUpgrade(t *testing.T) {
	const up = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	app, got := r.do(up+"early", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nhi")
	if app != "GET /chat HTTP/1.1\r\nhost: h\r\nsec-websocket-key: k\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n" {
		t.Errorf("app got %q", app)
	}
	if got != "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi" {
		t.Errorf("client got %q", got)
	}
	r.client.Send("\x01\x02GET")
	r.client.C.CloseWrite()
	r.n.Run()
	if app := r.app.Take(); app != "early\x01\x02GET" || !r.app.HadEOF || r.h.Open != 1 {
		t.Errorf("app got %q, EOF %v", app, r.app.HadEOF)
	}
	r.app.Send("bye")
	r.app.C.CloseWrite()
	r.n.Run()
	if r.client.Take() != "bye" || !r.client.Ended || r.client.Err != nil || r.h.Log[0].Reason != "" || !r.h.Log[0].Tunnel {
		t.Errorf("ended %v, log %v", r.client.Ended, r.h.Log)
	}

	r = newRig(exchange.ServerOptions{}, exchange.ClientOptions{}) // declined: plain HTTP goes on
	for range 2 {
		if _, got = r.do(up, ok200); got != ok200 {
			t.Errorf("declined: got %q", got)
		}
	}
	if app, _ := r.do(get, ok200); app != "GET / HTTP/1.1\r\nhost: h\r\n\r\n" || r.cl.Served() != 3 {
		t.Errorf("after a declined upgrade the app got %q", app)
	}
	if app, _ := r.do(strings.Replace(up, "websocket", "h2c", 1), ok200); strings.Contains(app, "h2c") {
		t.Errorf("h2c went through: %q", app)
	}
}

func TestConnect(t *testing.T) {
	const connect = "CONNECT h:22 HTTP/1.1\r\nHost: h:22\r\n\r\n"
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	app, got := r.do(connect, "HTTP/1.1 200 Connected\r\n\r\nSSH")
	if app != "CONNECT h:22 HTTP/1.1\r\nhost: h:22\r\n\r\n" || got != "HTTP/1.1 200 OK\r\n\r\nSSH" {
		t.Errorf("app %q, client %q", app, got)
	}
	r.app.C.CloseWrite()
	r.n.Run()
	if !r.client.HadEOF || r.client.Ended {
		t.Error("half-close was not passed on")
	}
	if app, _ := r.do("more", ""); app != "more" {
		t.Errorf("after half-close the app got %q", app)
	}
	r.client.C.Abort()
	r.n.Run()
	if !r.app.Ended || r.app.Err == nil || r.h.Log[0].Reason != mesh.ReasonDownstreamReset {
		t.Errorf("a reset became %v, log %v", r.app.Err, r.h.Log)
	}
	r = newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	if _, got := r.do(connect+"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 403 ") ||
		!strings.Contains(got, "connection: close") || len(r.h.Log) != 1 {
		t.Errorf("refused: got %q, log %v", got, r.h.Log)
	}
}

func TestTimeouts(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.client.Send("GET / HT")
	r.n.Run()
	r.n.Advance(h1.HeadTimeout - time.Second)
	if r.client.Got.Len() != 0 {
		t.Error("too early")
	}
	r.n.Advance(time.Second)
	if got := r.client.Take(); !strings.HasPrefix(got, "HTTP/1.1 408 ") || !r.client.HadEOF {
		t.Errorf("got %q", got)
	}
	r = newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.do(get, ok200)
	r.n.Advance(h1.HeadTimeout)
	if r.client.Ended {
		t.Error("an idle connection was closed like a slow head")
	}
	r.n.Advance(h1.IdleTimeout)
	r.n.Advance(h1.IdleTimeout)
	if !r.client.Over() || r.client.Err != nil || r.closed != 1 {
		t.Error("an idle connection stays")
	}
}

func TestDrain(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.client.Send(get)
	r.n.Run()
	r.sv.Drain()
	r.cl.Drain()
	r.app.Send(ok200)
	r.n.Run()
	if got := r.client.Take(); !strings.Contains(got, "connection: close\r\n") || !strings.HasSuffix(got, "ok") || !r.client.Over() || !r.app.Over() {
		t.Errorf("got %q, ended %v %v", got, r.client.Ended, r.app.Ended)
	}
	r = newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.sv.Drain()
	r.n.Run()
	if r.client.Over() {
		t.Error("an idle connection ended before a request that was on its way")
	}
	r.n.Advance(h1.DrainRest)
	if !r.client.Over() || r.closed != 1 {
		t.Error("an idle connection does not drain")
	}
}

// A request that meets the drain on its way is answered, and the client told that it was the last.
func TestDrainMeetsARequest(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.do(get, ok200)
	r.sv.Drain()
	r.client.Send(get)
	r.n.Run()
	r.app.Send(ok200)
	r.n.Run()
	if got := r.client.Take(); !strings.Contains(got, "connection: close\r\n") || !strings.HasSuffix(got, "ok") || !r.client.Over() {
		t.Errorf("got %q, ended %v", got, r.client.Ended)
	}
}

// Where there is time, no connection ends of which the client was not told: not between two requests, and not with a response that has begun
// without a word of it.
func TestUsher(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.client.Send(get)
	r.n.Run()
	r.app.Send(ok200[:len(ok200)-1])
	r.n.Run()
	r.sv.Usher()
	r.app.Send(ok200[len(ok200)-1:])
	r.n.Advance(10 * h1.DrainRest)
	if got := r.client.Take(); strings.Contains(got, "connection: close\r\n") || !strings.HasSuffix(got, "ok") || r.client.Over() {
		t.Fatalf("got %q, ended %v", got, r.client.Ended)
	}
	r.client.Send(get)
	r.n.Run()
	r.app.Send(ok200)
	r.n.Run()
	if got := r.client.Take(); !strings.Contains(got, "connection: close\r\n") || !strings.HasSuffix(got, "ok") || !r.client.Over() {
		t.Errorf("the next request: got %q, ended %v", got, r.client.Ended)
	}
	r = newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.do(get, ok200)
	r.sv.Usher()
	r.sv.Drain()
	r.n.Advance(h1.DrainRest)
	if !r.client.Over() {
		t.Error("an idle connection that was ushered does not drain")
	}
}

// A connection that is to begin nothing more ends at once between two requests, and with the one that is under way.
func TestQuit(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.do(get, ok200)
	r.sv.Quit()
	r.n.Run()
	if !r.client.Over() || r.client.IsReset() || r.closed != 1 {
		t.Errorf("idle: ended %v, closed %d", r.client.Over(), r.closed)
	}
	for _, early := range []string{get, get[:5], get + get} { // all of a request, a part of it, the next one too
		r = newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		r.client.Send(early)
		r.n.Run()
		r.sv.Quit()
		if early == get[:5] {
			r.client.Send(get[5:])
		}
		r.n.Run()
		r.app.Send(ok200)
		r.n.Run()
		if got := r.client.Take(); !strings.Contains(got, "connection: close\r\n") || !strings.HasSuffix(got, "ok") || !r.client.Over() || len(r.h.Log) != 1 {
			t.Errorf("%q: got %q, ended %v, log %v", early, got, r.client.Ended, r.h.Log)
		}
	}
}

func TestBackpressure(t *testing.T) {
	const limit = 400 << 10
	body := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.client.C.Room, r.up.Room, r.down.Chunk, r.up.Chunk = 32<<10, 32<<10, 32<<10, 32<<10
	r.client.C.Pause()
	r.client.Send(get)
	r.n.Run()
	r.app.Send("HTTP/1.1 200 OK\r\ncontent-length: 4194304\r\n\r\n" + body)
	r.n.Run()
	if !r.up.Paused || r.up.Received > limit || r.down.PeakBacklog > flow.HighWater+64<<10 {
		t.Fatalf("paused %v, took %d, backlog %d", r.up.Paused, r.up.Received, r.down.PeakBacklog)
	}
	r.client.C.Resume()
	r.n.Run()
	if _, got, _ := strings.Cut(r.client.Take(), "\r\n\r\n"); got != body {
		t.Errorf("got %d bytes", len(got))
	}
	r.app.Take()
	r.app.C.Room, r.down.Room = 32<<10, 32<<10 // and upload
	r.app.C.Pause()
	r.client.Send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4194304\r\n\r\n" + body)
	before := r.down.Received
	r.n.Run()
	if !r.down.Paused || r.down.Received-before > limit || r.up.PeakBacklog > flow.HighWater+64<<10 {
		t.Fatalf("upload: paused %v, took %d, backlog %d", r.down.Paused, r.down.Received-before, r.up.PeakBacklog)
	}
	r.app.C.Resume()
	r.n.Run()
	if _, got, _ := strings.Cut(r.app.Take(), "\r\n\r\n"); got != body {
		t.Errorf("upload: got %d bytes", len(got))
	}
}

func TestClientThatNeverReads(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.client.C.Room, r.down.Room, r.down.Chunk = 4<<10, 64<<10, 16<<10
	r.client.C.Pause()
	r.h.OnRequest = func(s *exchange.Stream) { s.Respond(200, nil, []byte(strings.Repeat("x", 1000))) }
	const count = 20000
	r.client.Send(strings.Repeat(get, count))
	r.client.C.CloseWrite()
	r.n.Run()
	if r.down.PeakBacklog > flow.HighWater+32<<10 || !r.down.Paused || len(r.h.Log) > 200 {
		t.Fatalf("backlog %d, paused %v, answered %d", r.down.PeakBacklog, r.down.Paused, len(r.h.Log))
	}
	r.client.C.Resume()
	r.n.Run()
	if n := strings.Count(r.client.Take(), "HTTP/1.1 200 OK"); n != count || !r.client.HadEOF {
		t.Errorf("%d answers, EOF %v", n, r.client.HadEOF)
	}
}

// TestTunnelOutlivesItsClient has a client that is done in both directions while the server has not taken everything.
func TestTunnelOutlivesItsClient(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.do("CONNECT h:22 HTTP/1.1\r\nHost: h:22\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n")
	r.app.C.CloseWrite()
	r.n.Run()
	r.app.C.Room = 32 << 10
	r.app.C.Pause()
	r.client.Send(strings.Repeat("x", 150<<10))
	r.client.C.CloseWrite()
	r.n.Run()
	if !r.client.Ended || r.client.Err != nil || r.h.Open != 1 || r.closed != 0 {
		t.Fatalf("client %v %v, open %d, closed %d", r.client.Ended, r.client.Err, r.h.Open, r.closed)
	}
	r.app.C.Resume()
	r.n.Run()
	if r.app.Got.Len() != 150<<10 || !r.app.HadEOF || r.app.Err != nil || r.h.Log[0].Reason != "" || r.closed != 1 {
		t.Errorf("app got %d, EOF %v, %v, log %v, closed %d", r.app.Got.Len(), r.app.HadEOF, r.app.Err, r.h.Log, r.closed)
	}
}

// TestResponseOutlivesItsServer has a server that is gone before a slow client has taken its complete answer, and one
// that says more than it was asked.
func TestResponseOutlivesItsServer(t *testing.T) {
	body := strings.Repeat("x", 200<<10)
	for _, extra := range []string{"", ok200} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		r.client.C.Room = 8 << 10
		r.client.C.Pause()
		r.client.Send(get)
		r.n.Run()
		r.app.Send("HTTP/1.1 200 OK\r\ncontent-length: 204800\r\n\r\n" + body + extra)
		r.n.Run()
		if r.h.Open != 1 || r.cl.Room() != 0 {
			t.Fatalf("open %d, room %d", r.h.Open, r.cl.Room())
		}
		r.app.C.Close()
		r.n.Run()
		r.client.C.Resume()
		r.n.Run()
		got := r.client.Take()
		if _, b, _ := strings.Cut(got, "\r\n\r\n"); b != body || r.h.Log[0].Reason != "" || r.client.Over() || r.cl.Room() != 0 {
			t.Errorf("extra %q: got %d, log %v, over %v", extra, len(got), r.h.Log, r.client.Over())
		}
	}
}
