package hostile

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// limited starts a proxy that may have n descriptors.
func limited(t *testing.T, n int, l listener) *process {
	t.Helper()
	return startAs(t, []string{"sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, n), "sh"}, l)
}

// crowd is n clients that have connected and say nothing. Those that the proxy has not accepted are behind the others.
func crowd(t *testing.T, addr string, n int) (all []net.Conn) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		all = append(all, c)
	}
	return all
}

// fetch sends a request over c, and wants a good answer.
func fetch(c net.Conn, path string) error {
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: app\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 {
		return fmt.Errorf("%s %v, %w", res.Status, res.Header, err)
	}
	return nil
}

// fetchAll is fetch over all connections at once.
func fetchAll(t *testing.T, all []net.Conn, path string) {
	t.Helper()
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			if err := fetch(c, path); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// TestCrowd: clients do not take the descriptors that are needed to serve them. The proxy says so, and goes on when there is
// room again.
func TestCrowd(t *testing.T) {
	app := serve(t)
	for _, tt := range []struct {
		protocol string
		served   int // of those that came first, at once
	}{{"http1", 70}, {"detect", 30}, {"opaque", 30}} {
		t.Run(tt.protocol, func(t *testing.T) {
			p := limited(t, 128, to(app, tt.protocol))
			all := crowd(t, p.addrs[0], 200)
			eventually(t, "the proxy to stop accepting", func() bool { return p.count("conduit_proxy_accept_stops_total", "", "") > 0 })
			fetchAll(t, all[:tt.served], "/")
			fetchAll(t, all[:tt.served], "/slow/300") // none finds a connection that another has left
			for _, c := range all {
				c.Close()
			}
			eventually(t, "the proxy to accept again", func() bool {
				return fetch(crowd(t, p.addrs[0], 1)[0], "/") == nil
			})
			if n := p.said("descriptors are short"); n != 1 {
				t.Errorf("the log says so %d times", n)
			}
		})
	}
}

// TestCrowdComesBack: connections to upstreams that nobody uses make room for clients.
func TestCrowdComesBack(t *testing.T) {
	p := limited(t, 128, to(serve(t), "http1"))
	first := crowd(t, p.addrs[0], 40)
	fetchAll(t, first, "/slow/300")
	fetchAll(t, append(first, crowd(t, p.addrs[0], 35)...), "/")
	if p.count("conduit_proxy_accept_stops_total", "", "") == 0 {
		t.Error("there was room enough")
	}
}

// eventually polls until done.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(patience); !done(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
