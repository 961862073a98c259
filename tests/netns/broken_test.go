package netns_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"conduit.io/conduit/tests/testnet"
)

// TestBrokenApplications: what an application does wrong is its clients' trouble, and nobody else's.
func TestBrokenApplications(t *testing.T) {
	w := newTown(t)
	echo := testnet.Serve(t, w.server, 0, func(c net.Conn) { io.Copy(c, c) })
	for name, tt := range map[string]struct {
		answer string
		h2     []bool
	}{
		"hangs up":                   {"", []bool{false, true}},
		"answers HTTP/2 in HTTP/1.1": {"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", []bool{true}},
		"answers nonsense":           {"what?\r\n\r\n", []bool{false, true}},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			port := testnet.Serve(t, w.server, 0, func(c net.Conn) {
				asked.Add(1)
				c.Read(make([]byte, 64<<10))
				io.WriteString(c, tt.answer)
			})
			w.onPaths(t, port, func(t *testing.T, p path) {
				for _, h2 := range tt.h2 {
					asked.Store(0)
					client := webClient(t, p, h2)
					client.Timeout = 10 * time.Second
					res, err := client.Get("http://" + p.to.String() + "/")
					if err != nil {
						t.Fatalf("HTTP/2 %v: %v", h2, err)
					}
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if res.StatusCode != http.StatusBadGateway || res.Header.Get("conduit-reason") == "" {
						t.Errorf("HTTP/2 %v: %s, %v", h2, res.Status, res.Header)
					}
					if n := asked.Load(); n > 4 { // three attempts, and what detection dials at once
						t.Errorf("HTTP/2 %v: the application was asked %d times", h2, n)
					}
				}
			})
			w.onPaths(t, echo, func(t *testing.T, p path) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				if got, err := testnet.RoundTrip(ctx, p.from, p.to, []byte("still here")); err != nil || string(got) != "still here" {
					t.Errorf("another application: %q, %v", got, err)
				}
			})
		})
	}
}
