package differential

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"conduit.io/conduit/tests/tcptest"
)

// switching is a server that accepts every upgrade and then does what the path says; where there is none, it says what
// it got.
func switching(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		line, fs, err := readHead(r)
		if err != nil {
			return
		}
		m := &message{fields: fs}
		if err := readBody(r, m, false); err != nil {
			return
		}
		token := m.get("upgrade")
		words := strings.Fields(line)
		if token == "" || words[1] == "/declined" {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Method: %s\r\nX-Upgrade: %s\r\nX-Settings: %s\r\nX-Connection: %s\r\nContent-Length: %d\r\n\r\n%s",
				words[0], token, m.get("http2-settings"), m.get("connection"), len(m.body), m.body)
			continue
		}
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Method: %s\r\nX-Key: %s\r\n\r\n",
			token, words[0], m.get("sec-websocket-key"))
		switch words[1] {
		case "/echo":
			io.Copy(c, r)
		case "/first": // the server speaks and ends first
			io.WriteString(c, "server's words")
			c.(*net.TCPConn).CloseWrite()
			rest, _ := io.ReadAll(r)
			got <- string(rest)
		case "/reset": // not before the client has heard of the tunnel
			r.ReadByte()
			c.(*net.TCPConn).SetLinger(0)
		case "/wait":
			_, err := io.ReadAll(r)
			got <- fmt.Sprint(errors.Is(err, syscall.ECONNRESET))
		}
		return
	}
}

// got is what a switching server has heard behind an upgrade.
var got = make(chan string, 1)

// tunnels are the ways on which HTTP/1.1 can be switched to something else.
func tunnels(t *testing.T) []path {
	b := newBackend(t)
	addr := tcptest.Serve(t, switching)
	ways := []path{{in: "http1", out: "http1", addr: addr}}
	for _, p := range paths(t, addr, b.h2) {
		if p.in == "http1" && p.out == "http1" {
			ways = append(ways, p)
		}
	}
	return ways
}

const upgradeTo = " HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: k\r\nUpgrade: "

// upgrade opens a tunnel; early goes out with the request.
func upgrade(t *testing.T, p path, line, token, early string) (*net.TCPConn, *bufio.Reader, *message) {
	t.Helper()
	c := dial(t, p.addr)
	io.WriteString(c, line+upgradeTo+token+"\r\n\r\n"+early)
	r := bufio.NewReader(c)
	m, err := readResponse(r, "")
	if err != nil {
		t.Fatalf("%s: %s: %v", p, token, err)
	}
	return c, r, m
}

// TestUpgrade carries protocols of all kinds, with bytes that come with the request.
func TestUpgrade(t *testing.T) {
	big := strings.Repeat("0123456789", 100000)
	for _, p := range tunnels(t) {
		for _, tt := range []struct{ method, token string }{
			{"GET", "websocket"}, {"GET", "WebSocket"}, {"POST", "SPDY/3.1"}, {"GET", "x"}, {"PUT", "Other-Protocol/1.0"},
		} {
			c, r, m := upgrade(t, p, tt.method+" /echo", tt.token, "early"+big)
			if m.line != "101" || m.get("upgrade") != tt.token || !strings.EqualFold(m.get("connection"), "upgrade") || m.get("x-method") != tt.method || m.get("x-key") != "k" {
				t.Errorf("%s: %s: %v", p, tt.token, m)
			}
			io.WriteString(c, "later")
			c.CloseWrite()
			if back, err := io.ReadAll(r); err != nil || string(back) != "early"+big+"later" {
				t.Errorf("%s: %s: %d bytes, %v", p, tt.token, len(back), err)
			}
		}
	}
}

// TestTunnelEnds ends tunnels in each direction, in order and by a reset.
func TestTunnelEnds(t *testing.T) {
	for _, p := range tunnels(t) {
		c, r, _ := upgrade(t, p, "GET /first", "websocket", "")
		if words, err := io.ReadAll(r); err != nil || string(words) != "server's words" {
			t.Errorf("%s: the server ends first: %q, %v", p, words, err)
		}
		io.WriteString(c, "client's words")
		c.CloseWrite()
		if words := <-got; words != "client's words" {
			t.Errorf("%s: behind its end the server got %q", p, words)
		}
		c, r, _ = upgrade(t, p, "GET /reset", "websocket", "")
		io.WriteString(c, "x")
		if _, err := io.ReadAll(r); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the server resets: %v", p, err)
		}
		c, _, _ = upgrade(t, p, "GET /wait", "websocket", "")
		c.SetLinger(0)
		c.Close()
		if reset := <-got; reset != "true" {
			t.Errorf("%s: the client resets: %s", p, reset)
		}
	}
}

// TestUpgradeDeclined: a server may pass over the wish, and the connection goes on; so may the proxy, where an upgrade has
// no meaning here (h2c) or no tunnel to it (a body).
func TestUpgradeDeclined(t *testing.T) {
	for _, p := range tunnels(t)[1:] {
		c := dial(t, p.addr)
		r := bufio.NewReader(c)
		for _, tt := range []struct{ request, upgrade, connection, body string }{
			{"GET /declined" + upgradeTo + "websocket\r\n\r\n", "websocket", "upgrade", ""},
			{"GET /echo" + upgradeTo + "h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", "", "", ""},
			{"GET /echo HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n", "", "", ""},
			{"POST /echo" + upgradeTo + "x\r\nContent-Length: 4\r\n\r\nbody", "", "", "body"},
			{"GET /echo" + upgradeTo + "a/1, b/2\r\n\r\n", "", "", ""},
			{"GET /echo HTTP/1.0\r\nHost: h\r\nConnection: keep-alive, upgrade\r\nUpgrade: websocket\r\n\r\n", "", "", ""},
		} {
			io.WriteString(c, tt.request)
			m, err := readResponse(r, "")
			if err != nil || m.line != "200" || m.get("x-upgrade") != tt.upgrade || m.get("x-settings") != "" || m.get("x-connection") != tt.connection || string(m.body) != tt.body {
				t.Fatalf("%s: %.60q: %v, %v", p, tt.request, m, err)
			}
		}
	}
}

// TestConnectRefused: nobody is a forward proxy here.
func TestConnectRefused(t *testing.T) {
	b := newBackend(t)
	for _, p := range paths(t, b.h1, b.h2) {
		c := dial(t, p.addr)
		var m *message
		if p.in == "http1" {
			io.WriteString(c, "CONNECT app.example:443 HTTP/1.1\r\nHost: app.example:443\r\n\r\n"+smuggled)
			all, err := io.ReadAll(c)
			if err != nil || bytes.Count(all, []byte("HTTP/1.1 ")) != 1 {
				t.Errorf("%s: %q, %v", p, all, err)
			}
			if m, err = readResponse(bufio.NewReader(bytes.NewReader(all)), "CONNECT"); err != nil {
				t.Errorf("%s: %q, %v", p, all, err)
				continue
			}
		} else {
			h := newH2(c, true, nil)
			if err := h.start(); err != nil {
				t.Fatal(err)
			}
			m = h.open([]field{{":method", "CONNECT"}, {":authority", "app.example:443"}}, false).response()
		}
		if m == nil || m.line != "501" || m.get("conduit-reason") != "bad-request" {
			t.Errorf("%s: %v", p, m)
		}
	}
	if s := b.uninvited(); len(s) > 0 {
		t.Errorf("the server received %v", s)
	}
}
