package proxy_test

import (
	"crypto/tls"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// delay is what a slow server takes.
const delay = 50 * time.Millisecond

// slowly answers after the delay.
func slowly(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-time.After(delay)
	_, _ = io.WriteString(w, "done")
}

// parts are the sums of conduit_latency_part_ms, by part.
type parts map[string]time.Duration

// readParts checks that the parts add up to the latency of n requests.
func readParts(t *testing.T, p *process, n int) parts {
	t.Helper()
	text := metrics(t, p)
	got, all, latency := parts{}, time.Duration(0), time.Duration(0)
	for l := range strings.Lines(text) {
		name, labels, _ := strings.Cut(l, "{")
		i := strings.LastIndexByte(l, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(l[i+1:]), 64)
		ms := time.Duration(math.Round(v * float64(time.Millisecond)))
		switch name {
		case "conduit_latency_part_ms_sum":
			_, part, _ := strings.Cut(labels, `part="`)
			part, _, _ = strings.Cut(part, `"`)
			got[part] += ms
			all += ms
		case "response_latency_ms_sum":
			latency += ms
		case "response_latency_ms_count":
			if n -= int(v); err != nil || n < 0 {
				t.Fatalf("%s: %v", l, err)
			}
		}
	}
	// One nanosecond for each number that was rounded.
	if n != 0 || all == 0 || (all-latency).Abs() > time.Duration(len(got)+2) {
		t.Errorf("%d requests are missing; the parts add up to %v, the latency is %v: %v\n%s", n, all, latency, got, grep(text, "_ms_sum"))
	}
	return got
}

func fetch(t *testing.T, c *http.Client, url string, body io.Reader) {
	res, err := c.Post(url, "text/plain", body)
	if err != nil {
		t.Error(err)
		return
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%s: %d %q, %v", url, res.StatusCode, b, err)
	}
}

// The time of a slow server is the server's, and that of a client that sends its body slowly is the client's.
func TestPartsOfASlowServer(t *testing.T) {
	up := serveHTTP(t, http.HandlerFunc(slowly))
	for _, protocol := range []string{"http1", "http2"} {
		p := startProxy(t, config{"listeners": []any{proxyTo(up, protocol)}, "admin": "127.0.0.1:0"})
		c := client(t, protocol == "http2")
		const n = 5
		for range n {
			fetch(t, c, "http://"+p.addrs[0]+"/", nil)
		}
		got := readParts(t, p, n)
		if got["upstream"] < n*delay || got["proxy"] == 0 || got["proxy"] >= got["upstream"] {
			t.Errorf("%s: %v", protocol, got)
		}
		r, w := io.Pipe()
		go func() {
			for range 3 {
				_, _ = io.WriteString(w, "a piece")
				<-time.After(delay)
			}
			w.Close()
		}()
		fetch(t, c, "http://"+p.addrs[0]+"/", r)
		if up := readParts(t, p, n+1); up["request"] < 2*delay || up["upstream"] < got["upstream"]+delay {
			t.Errorf("%s: after a slow upload %v, before %v", protocol, up, got)
		}
	}
}

// What a dial takes, with its TLS handshake, is told apart from other waiting.
func TestPartsOfASlowDial(t *testing.T) {
	a := newAuthority(t)
	id := a.issue("server")
	ln := listen(t)
	s := &http.Server{
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		TLSConfig: &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			<-time.After(delay)
			return nil, nil
		}},
	}
	go s.ServeTLS(ln, id["cert"].(string), id["key"].(string))
	t.Cleanup(func() { s.Close() })
	l := proxyTo(ln.Addr().String(), "http2")
	l["upstream_tls"] = config{"ca": id["ca"]}
	p := startProxy(t, config{"listeners": []any{l}, "admin": "127.0.0.1:0"})
	c := client(t, true)
	for range 3 {
		fetch(t, c, "http://"+p.addrs[0]+"/", nil)
	}
	if got := readParts(t, p, 3); got["connect"] < delay || got["queue"] != 0 {
		t.Errorf("%v", got)
	}
}

// A stream that waits for a place is in the queue. The server takes one stream at a time, and no other connection.
func TestPartsOfAQueue(t *testing.T) {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	up := serveOneConnection(t, &http.Server{
		Handler: http.HandlerFunc(slowly), Protocols: &protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1},
	})
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "http2")}, "admin": "127.0.0.1:0"})
	c := client(t, true)
	fetch(t, c, "http://"+p.addrs[0]+"/", nil)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { fetch(t, c, "http://"+p.addrs[0]+"/", nil) })
	}
	wg.Wait()
	if got := readParts(t, p, 4); got["queue"] < delay || got["upstream"] < 4*delay || got["connect"] >= got["queue"] {
		t.Errorf("%v", got)
	}
}

// serveOneConnection lets s serve the first connection to the address that it returns; others find the queue of the kernel
// full, and never get there.
func serveOneConnection(t *testing.T, s *http.Server) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(file) // leaves the backlog as it is
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(&once{Listener: l, closed: make(chan struct{})})
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// once accepts one connection, and fills the queue behind it.
type once struct {
	net.Listener
	filler net.Conn
	closed chan struct{}
	close  sync.Once
}

func (o *once) Accept() (net.Conn, error) {
	if o.filler != nil {
		<-o.closed
		o.filler.Close()
		return nil, net.ErrClosed
	}
	c, err := o.Listener.Accept()
	if err == nil {
		o.filler, err = net.Dial("tcp", o.Addr().String()) // all that the queue has room for
	}
	return c, err
}

func (o *once) Close() error {
	o.close.Do(func() { close(o.closed) })
	return o.Listener.Close()
}
