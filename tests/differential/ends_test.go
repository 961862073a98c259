package differential

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/tcptest"
)

// attentive is a server that answers only when the client has finished sending on the connection.
func attentive(c net.Conn) {
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
		if strings.HasPrefix(line, "GET /first") {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")
			continue
		}
		rest, err := io.ReadAll(r)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Rest: %q %v\r\nContent-Length: 4\r\n\r\nlast", rest, err)
		return
	}
}

// TestHalfClose: a client that has said all it wants to say, and closes its direction, gets its answer all the same;
// and the server hears of it, as it would directly.
func TestHalfClose(t *testing.T) {
	b := newBackend(t)
	addr := tcptest.Serve(t, attentive)
	ways := []path{{in: "http1", out: "http1", addr: addr}}
	for _, p := range paths(t, addr, b.h2) {
		if p.in == "http1" && p.out == "http1" {
			ways = append(ways, p)
		}
	}
	big := strings.Repeat("0123456789", 50000)
	for _, p := range ways {
		for _, sent := range []string{
			"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
			"GET / HTTP/1.0\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
			"GET /first HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n" + big,
			"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n7a120\r\n" + big + "\r\n0\r\n\r\n",
		} {
			c := dial(t, p.addr)
			io.WriteString(c, sent)
			c.CloseWrite()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.HasSuffix(got, []byte("last")) || !strings.Contains(strings.ToLower(string(got)), `x-rest: "" <nil>`) {
				t.Errorf("%s: %.60q: %q, %v", p, sent, got, err)
			}
			c.Close()
		}
	}
}

// TestClientGone: a server learns at once that its client has closed the connection, also if it has nothing to write.
func TestClientGone(t *testing.T) {
	b := newBackend(t)
	gone := make(chan error, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{}, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		started <- struct{}{}
		<-r.Context().Done()
		gone <- r.Context().Err()
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	for _, p := range paths(t, l.Addr().String(), b.h2) {
		if p.out != "http1" {
			continue
		}
		c := dial(t, p.addr)
		if p.in == "http2" {
			h := newH2(c, true, nil)
			if err := h.start(); err != nil {
				t.Fatal(err)
			}
			h.open((&request{method: "GET", scheme: "http", authority: "h", path: "/"}).head2(), true)
		} else {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		}
		<-started
		c.Close()
		select {
		case <-gone:
		case <-time.After(patience):
			t.Fatalf("%s: the server never learnt that the client had gone", p)
		}
	}
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}
