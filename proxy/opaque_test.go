package proxy_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/tcptest"

	"golang.org/x/net/http2"
)

// serveTCP runs f for every connection.
func serveTCP(t *testing.T, f func(c *net.TCPConn)) string {
	t.Helper()
	return tcptest.Serve(t, func(c net.Conn) { f(c.(*net.TCPConn)) })
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(60 * time.Second))
	return c.(*net.TCPConn)
}

func TestServerFirst(t *testing.T) {
	up := serveTCP(t, func(c *net.TCPConn) {
		io.WriteString(c, "220 ready\r\n")
		line, _ := bufio.NewReader(c).ReadString('\n')
		io.WriteString(c, "250 "+line)
	})
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "detect"), proxyTo(up, "opaque")}})
	for i, addr := range []string{p.addrs[0], p.addrs[1], p.addrs[0]} {
		c := dial(t, addr)
		r := bufio.NewReader(c)
		if l, err := r.ReadString('\n'); err != nil || l != "220 ready\r\n" {
			t.Fatalf("%d: greeting %q, %v", i, l, err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\n") // whatever it says now, the protocol is settled
		if l, err := r.ReadString('\n'); err != nil || l != "250 GET / HTTP/1.1\r\n" {
			t.Fatalf("%d: answer %q, %v", i, l, err)
		}
	}
}

// A client that says something short and waits, in letters that might have become a method, is served.
// A server of HTTP/2 may speak first (RFC 9113, 3.4). A client of HTTP/1.1 that is slow to ask does not get to see that.
func TestSlowClientOfHTTP2(t *testing.T) {
	spoken := make(chan struct{}, 8)
	up := serveTCP(t, func(c *net.TCPConn) {
		if err := http2.NewFramer(c, nil).WriteSettings(); err != nil {
			t.Error(err)
		}
		spoken <- struct{}{}
		io.Copy(io.Discard, c)
	})
	l := proxyTo(up, "detect")
	l["upstream_protocol"] = "http2"
	p := startProxy(t, config{"listeners": []any{l}})
	c := dial(t, p.addrs[0])
	select { // wrong if it ever happens; long enough for what would be at once
	case <-spoken:
		t.Fatal("the upstream was asked before the client had said a word")
	case <-time.After(300 * time.Millisecond):
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-spoken
}

func TestUndecidedClient(t *testing.T) {
	up := serveTCP(t, func(c *net.TCPConn) {
		b := make([]byte, 16)
		n, _ := c.Read(b)
		fmt.Fprintf(c, "got %s", b[:n])
	})
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "detect")}})
	for _, word := range []string{"PING", "G", "GET ", "PRI * ", "hello", "\x00"} {
		c := dial(t, p.addrs[0])
		io.WriteString(c, word)
		if b, err := io.ReadAll(c); err != nil || string(b) != "got "+word {
			t.Errorf("%q: %q, %v", word, b, err)
		}
	}
}

// Whatever the first bytes and however they are cut, HTTP is taken for HTTP and all else for bytes, in any order on
// one listener.
func TestDetectionInEveryOrder(t *testing.T) {
	up := serveTCP(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		first, err := r.Peek(4)
		if err != nil {
			return
		}
		if string(first) == "GET " {
			if req, err := http.ReadRequest(r); err == nil {
				via := req.Header.Get("X-Cut")
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(via), via)
			}
			return
		}
		io.Copy(c, r)
	})
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "detect")}, "admin": "127.0.0.1:0"})
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 60 {
		c := dial(t, p.addrs[0])
		cut := fmt.Sprintf("cut %d", i)
		msg := "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Cut: " + cut + "\r\n\r\n"
		want := cut
		if i%2 == 1 {
			msg = []string{"*1\r\n$4\r\nPING\r\n", "\x16\x03\x01\x00\x01x", "GETTING\r\n", "SSH-2.0-x\r\n"}[i/2%4]
			want = msg
		}
		for rest := msg; rest != ""; {
			n := 1 + rng.IntN(len(rest))
			io.WriteString(c, rest[:n])
			rest = rest[n:]
		}
		if i%2 == 1 {
			c.CloseWrite()
		}
		got, err := io.ReadAll(c)
		if err != nil || !strings.HasSuffix(string(got), want) {
			t.Fatalf("%d: sent %q, got %q, %v", i, msg, got, err)
		}
		c.Close()
	}
	res, err := client(t, false).Get("http://" + p.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	for _, w := range []string{`protocol="http1",tls="none"} 30`, `protocol="tcp",tls="none"} 30`} {
		if !strings.Contains(string(b), w) {
			t.Errorf("metrics lack %s:\n%s", w, b)
		}
	}
}

func TestHalfClose(t *testing.T) {
	up := serveTCP(t, func(c *net.TCPConn) {
		b, err := io.ReadAll(c) // to the client's FIN
		fmt.Fprintf(c, "%d bytes, %v", len(b), err)
	})
	heard := make(chan string, 1)
	serverShut := serveTCP(t, func(c *net.TCPConn) {
		io.WriteString(c, "bye")
		c.CloseWrite()
		b, err := io.ReadAll(c)
		heard <- fmt.Sprintf("%s %v", b, err)
	})
	for _, proto := range []string{"opaque", "detect"} {
		p := startProxy(t, config{"listeners": []any{proxyTo(up, proto), proxyTo(serverShut, proto)}})
		c := dial(t, p.addrs[0])
		c.Write(make([]byte, 100000))
		c.CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "100000 bytes, <nil>" {
			t.Errorf("%s: %q, %v", proto, b, err)
		}
		c = dial(t, p.addrs[0]) // FIN without a word
		c.CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "0 bytes, <nil>" {
			t.Errorf("%s: %q, %v", proto, b, err)
		}
		c = dial(t, p.addrs[1])
		if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
			t.Errorf("%s: %q, %v", proto, b, err)
		}
		io.WriteString(c, "still here")
		c.CloseWrite()
		if got := <-heard; got != "still here <nil>" {
			t.Errorf("%s: after its FIN the server heard %s", proto, got)
		}
	}
}

func TestBulkBothWays(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 32 << 20
	}
	up := serveTCP(t, func(c *net.TCPConn) {
		done := make(chan hash.Hash)
		go func() {
			h := sha256.New()
			io.Copy(h, c)
			done <- h
		}()
		sent := sha256.New()
		io.Copy(io.MultiWriter(c, sent), io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
		h := <-done
		c.Write(h.Sum(nil))
		c.Write(sent.Sum(nil))
	})
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "opaque")}, "admin": "127.0.0.1:0"})
	c := dial(t, p.addrs[0])
	sent := sha256.New()
	go func() {
		io.Copy(io.MultiWriter(c, sent), io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
		c.CloseWrite()
	}()
	got := sha256.New()
	if _, err := io.CopyN(got, c, size); err != nil {
		t.Fatal(err)
	}
	sums, err := io.ReadAll(c)
	if err != nil || len(sums) != 64 {
		t.Fatalf("%d bytes of sums, %v", len(sums), err)
	}
	if string(sums[:32]) != string(sent.Sum(nil)) || string(sums[32:]) != string(got.Sum(nil)) {
		t.Error("bytes were changed")
	}
	c.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		text := metrics(t, p)
		if count(text, "tcp_read_bytes_total") == size && count(text, "tcp_write_bytes_total") == size+64 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not every byte was counted:\n%s", text)
		}
	}
}

// count is the sum of a metric over its labels.
func count(text, name string) (n int64) {
	for line := range strings.Lines(text) {
		if v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]), 64); err == nil && strings.HasPrefix(line, name+"{") {
			n += int64(v)
		}
	}
	return n
}

// A client that does not read must stop the server, not fill the proxy.
func TestBackpressure(t *testing.T) {
	wrote := make(chan int64, 1)
	up := serveTCP(t, func(c *net.TCPConn) {
		c.SetWriteDeadline(time.Now().Add(1500 * time.Millisecond))
		n, _ := io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{1}), 256<<20))
		wrote <- n
	})
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "opaque")}})
	dial(t, p.addrs[0])
	if n := <-wrote; n > 40<<20 {
		t.Errorf("the server could write %d MB to a client that reads nothing", n>>20)
	}
}
