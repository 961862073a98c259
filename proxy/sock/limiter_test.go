package sock

import (
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestHalfOpenHandshakesOfOnePeer: a peer that begins more handshakes than there are turns, and finishes none, does not keep
// another one waiting.
func TestHalfOpenHandshakesOfOnePeer(t *testing.T) {
	l := start(t)
	server, client := configs()
	addr, conns := listen(t, l)
	from := func(ip string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		c, err := d.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	const bad = maxHandshakes + 10
	ended := make(chan error, bad)
	var held []*Conn
	for range bad {
		if _, err := from("127.0.0.2").Write([]byte{0x16}); err != nil {
			t.Fatal(err)
		}
		c := recv(t, conns)
		held = append(held, c)
		do(t, l, func() { c.StartTLS(server, func(err error) { ended <- err }) })
	}
	until(t, l, func() bool {
		serverSlots.mu.Lock()
		defer serverSlots.mu.Unlock()
		return serverSlots.active+len(serverSlots.waiting) == bad
	})
	good := from("127.0.0.1")
	done := make(chan error, 1)
	c := recv(t, conns)
	do(t, l, func() { c.StartTLS(server, func(err error) { done <- err }) })
	_ = good.SetDeadline(time.Now().Add(5 * time.Second)) // half of what a handshake may take
	if err := tls.Client(good, client).Handshake(); err != nil {
		t.Errorf("handshake of another peer: %v", err)
	}
	if err := recv(t, done); err != nil {
		t.Errorf("handshake of another peer, at the server: %v", err)
	}
	do(t, l, func() {
		c.Abort()
		for _, c := range held {
			c.Abort()
		}
	})
	for range bad {
		recv(t, ended)
	}
	until(t, l, serverSlots.idle)
}

// TestFullQueueIsFair: where too many wait, the peer that has most of them gives way to one that has few.
func TestFullQueueIsFair(t *testing.T) {
	l := start(t)
	one := func(ip string) *handshake {
		return &handshake{c: &Conn{l: l, remote: netip.AddrPortFrom(netip.MustParseAddr(ip), 1)}}
	}
	s := limiter{active: maxHandshakes}
	for range maxWaiting {
		if !s.enter(one("192.0.2.1")) {
			t.Fatal("refused before the queue was full")
		}
	}
	first := s.waiting[0]
	if s.enter(one("192.0.2.1")) {
		t.Error("one more of the peer that has the whole queue is let in")
	}
	if !s.enter(one("192.0.2.2")) {
		t.Error("a peer that has none waiting is refused")
	}
	if s.queued[netip.MustParseAddr("192.0.2.1")] != maxWaiting-1 || len(s.waiting) != maxWaiting || s.waiting[0] != first {
		t.Errorf("queue of %d: %v; want the newest of the greedy peer dropped", len(s.waiting), s.queued)
	}
	if last := s.waiting[maxWaiting-1]; !s.leaveQueue(last) || s.leaveQueue(last) || len(s.queued) != 1 {
		t.Errorf("after the second peer has left: %v", s.queued)
	}
}
