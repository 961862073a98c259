package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
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
