package sock

import (
	"crypto/tls"
	"io"
	"runtime"
	"strings"
	"testing"

	"conduit.io/conduit/proxy/loop"
)

func TestIdleTLSConnectionMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory counts")
	}
	l := start(t)
	server, client := configs()
	const n = 200
	all := make(chan *Conn, 2*n)
	accept := func(c *Conn) {
		c.StartTLS(server, func(err error) {
			if err != nil {
				t.Error(err)
			}
			all <- c
		})
	}
	addr := addrPortOf(t, serve(t, l, accept))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range n {
		c, err := dialed(t, l, DialOptions{Addr: addr, TLS: client})
		if err != nil {
			t.Fatal(err)
		}
		all <- c
	}
	conns := make([]*Conn, 2*n)
	big := make([]byte, 100_000)
	for i := range conns {
		conns[i] = recv(t, all)
		do(t, l, func() {
			p := watch(t, conns[i])
			p.onData = func([]byte) {}
			conns[i].Write(big) // each has carried full records
		})
	}
	until(t, l, func() bool {
		for _, c := range conns {
			if c.Backlog() > 0 || c.canRead {
				return false
			}
		}
		return true
	})
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / (2 * n)
	t.Logf("%d bytes for each end of an idle TLS connection", per)
	if per > 8<<10 {
		t.Errorf("an idle TLS connection takes %d bytes, want at most 8 KiB", per)
	}
	runtime.KeepAlive(conns)
}

// TestHalfRecordMemory: of the peers that send the start of a record and stop, all but a few cost what they have sent.
// The rest of the record is understood when it comes.
func TestHalfRecordMemory(t *testing.T) {
	l := start(t)
	words := strings.Repeat("some words of many ", 500)
	var halves [maxKept + 5]*half
	for i := range halves {
		halves[i] = startHalf(t, l, words)
	}
	for sent := 0; sent < len(words)+100; sent += 3000 {
		for _, h := range halves {
			h.send(t, 3000)
		}
		until(t, l, func() bool {
			small := 0
			for _, h := range halves {
				if len(h.c.tls.kept) != h.waiting() {
					return false
				}
				if h.c.tls.full == nil && cap(h.c.tls.kept) < 2*h.waiting()+512 {
					small++
				}
			}
			return small >= len(halves)-maxKept
		})
	}
	do(t, l, func() {
		for i, h := range halves {
			if h.p.data.String() != words {
				t.Errorf("%d: got %d bytes, want %d", i, h.p.data.Len(), len(words))
			}
			h.c.Abort()
		}
		if n := keptOut.Load(); n != 0 {
			t.Errorf("%d buffers are nobody's", n)
		}
	})
	for _, h := range halves {
		recv(t, h.p.closed)
	}
}

// half is a connection on which a record arrives in pieces.
type half struct {
	holder
	c    *Conn
	p    *probe
	size int
}

func startHalf(t *testing.T, l *loop.Loop, words string) *half {
	server, client := configs()
	c, peer := accepted(t, l)
	done := make(chan error, 1)
	do(t, l, func() { c.StartTLS(server, func(err error) { done <- err }) })
	h := &half{holder: holder{Conn: peer, pass: 10}, c: c}
	tc := tls.Client(h, client)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := recv(t, done); err != nil {
		t.Fatal(err)
	}
	do(t, l, func() { h.p = watch(t, c) })
	h.pass = 0
	_, _ = io.WriteString(tc, words)
	h.size = len(h.held)
	return h
}

// waiting is how much of the record has been sent, if it is not complete.
func (h *half) waiting() int {
	if len(h.held) == 0 {
		return 0
	}
	return h.size - len(h.held)
}

func (h *half) send(t *testing.T, n int) {
	n = min(n, len(h.held))
	if _, err := h.Conn.Write(h.held[:n]); err != nil {
		t.Fatal(err)
	}
	h.held = h.held[n:]
}
