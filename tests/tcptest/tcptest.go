// Package tcptest has the TCP server of tests that speak for themselves, byte by byte.
package tcptest

import (
	"net"
	"sync"
	"testing"
)

// Serve serves every connection with f, in a goroutine of its own, and closes it when f returns, or with the test; the test waits for
// every f. It returns the address, on the loopback.
func Serve(t testing.TB, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ServeOn(t, l, f)
	return l.Addr().String()
}

// ServeOn is Serve on a listener of the test's own, which it closes.
func ServeOn(t testing.TB, l net.Listener, f func(net.Conn)) {
	t.Helper()
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				f(c)
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}
