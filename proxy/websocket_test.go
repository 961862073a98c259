package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/websocket"
)

// webSocketApp, in the environment, makes this program the application that TestWebSocketTowardHTTP2 needs: net/http takes
// extended CONNECT only if GODEBUG says so when the program starts.
const webSocketApp = "CONDUIT_TEST_WEBSOCKET_APP"

// serveWebSocket says on standard output where it listens, and echoes WebSockets until standard input ends.
func serveWebSocket() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	go (&http.Server{Protocols: &p, Handler: http.HandlerFunc(echoWebSocket)}).Serve(l)
	fmt.Println(l.Addr())
	io.Copy(io.Discard, os.Stdin)
}

func echoWebSocket(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect || r.Header.Get(":protocol") != "websocket" {
		http.Error(w, "not an extended CONNECT: "+r.Method+" "+r.Proto, http.StatusBadRequest)
		return
	}
	w.Header().Set("Sec-WebSocket-Protocol", r.Header.Get("Sec-WebSocket-Protocol"))
	w.WriteHeader(200)
	buf := make([]byte, 32<<10)
	for {
		http.NewResponseController(w).Flush()
		n, err := r.Body.Read(buf)
		w.Write(buf[:n])
		if err != nil {
			return
		}
	}
}

func startWebSocketApp(t *testing.T) (addr string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), webSocketApp+"=1", "GODEBUG=http2xconnect=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	addr, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

// A real HTTP/2 server that takes WebSocket by extended CONNECT, behind the proxy and an HTTP/1.1 client.
func TestWebSocketTowardHTTP2(t *testing.T) {
	up := startWebSocketApp(t)
	to := proxyTo(up, "http1")
	to["upstream_protocol"] = "http2"
	p := startProxy(t, config{"listeners": []any{to}})
	for range 3 { // the first finds no connection, and so no SETTINGS
		c, err := net.Dial("tcp", p.addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
			"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 101 || res.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || res.Header.Get("Sec-WebSocket-Protocol") != "chat" {
			t.Fatalf("%s %v", res.Status, res.Header)
		}
		sent := strings.Repeat("0123456789abcdef", 1<<15)
		go io.WriteString(c, sent)
		got := make([]byte, len(sent))
		if n, err := io.ReadFull(r, got); err != nil || string(got) != sent {
			t.Fatalf("%d of %d bytes came back, %v", n, len(sent), err)
		}
		c.(*net.TCPConn).CloseWrite()
		if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
			t.Errorf("at the end: %q, %v", rest, err)
		}
	}
}

// A WebSocket of a real HTTP/2 client, which opens one only where the server has announced that it may: before an application
// that speaks HTTP/1.1, before one that takes extended CONNECT, and, where the proxy is not told what the application speaks,
// before one that speaks HTTP/2 but takes WebSocket over HTTP/1.1 only.
func TestWebSocketFromHTTP2(t *testing.T) {
	//nolint:staticcheck // SA1019: net/http's Transport knows no extended CONNECT
	client := &http.Client{Transport: &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	old := serveHTTP(t, websocket.Handler(func(c *websocket.Conn) { io.Copy(c, c) }))
	for _, tt := range []struct{ up, protocol, sent, back string }{
		{old, "http1", "\x81\x85\x00\x00\x00\x00hello", "\x81\x05hello"}, // a frame: masked by the client, not by the server
		{old, "auto", "\x81\x85\x00\x00\x00\x00hello", "\x81\x05hello"},
		{startWebSocketApp(t), "http2", "hello", "hello"},
	} {
		to := proxyTo(tt.up, "detect")
		to["upstream_protocol"] = tt.protocol
		p := startProxy(t, config{"listeners": []any{to}})
		for range 3 {
			r, w := io.Pipe()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			req, err := http.NewRequestWithContext(ctx, "CONNECT", "http://"+p.addrs[0]+"/chat", r)
			if err != nil {
				t.Fatal(err)
			}
			req.Header = http.Header{":protocol": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Origin": {"http://app.example"}}
			res, err := client.Do(req)
			if err != nil {
				t.Fatalf("%s: %v", tt.protocol, err)
			}
			if res.StatusCode != 200 {
				t.Fatalf("%s: %s %v", tt.protocol, res.Status, res.Header)
			}
			for range 3 {
				io.WriteString(w, tt.sent)
				got := make([]byte, len(tt.back))
				if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != tt.back {
					t.Errorf("%s: %q came back, %v", tt.protocol, got, err)
				}
			}
			w.Close()
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) != 0 {
				t.Errorf("%s: at the end: %q, %v", tt.protocol, rest, err)
			}
			cancel()
		}
	}
}
