package sock

import (
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"testing"
	"time"

	"conduit.io/conduit/proxy/loop"
)

// lateCancel runs peer, the other side of the handshake of c, to its end while the loop is busy, and then calls cancel
// on the loop: the handshake has succeeded, but nobody there knows yet.
func lateCancel(t *testing.T, l *loop.Loop, c *Conn, peer *tls.Conn, cancel func()) {
	t.Helper()
	idle := runtime.NumGoroutine()
	do(t, l, func() {
		h := c.stage.(*handshake)
		if h.begun {
			idle-- // its goroutine
		} else {
			h.begin()
		}
		shaken := make(chan error, 1)
		go func() { shaken <- peer.Handshake() }()
		for deadline := time.Now().Add(patience); runtime.NumGoroutine() > idle; runtime.Gosched() {
			h.signal() // which the loop would do
			if time.Now().After(deadline) {
				t.Error("the handshake does not end")
				break
			}
		}
		if err := <-shaken; err != nil {
			t.Error(err)
		}
		cancel()
	})
}

func TestCancelDialAfterItsHandshake(t *testing.T) {
	l := start(t)
	server, client := configs()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var d *dial
	var cancel func()
	before := 0
	do(t, l, func() {
		before = l.Watched()
		d = &dial{o: DialOptions{Addr: addrPortOf(t, ln.Addr().String()), TLS: client, Timeout: patience}, end: l.Now() + int64(patience),
			done: func(*Conn, error) { t.Error("done was called after cancel") }}
		if err := d.start(l); err != nil {
			t.Error(err)
		}
		cancel = d.abandon
	})
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	until(t, l, func() bool { h, ok := d.c.stage.(*handshake); return ok && h.begun })
	lateCancel(t, l, d.c, tls.Server(peer, server), cancel)
	until(t, l, func() bool { return l.Watched() == before })
}

func TestCloseAfterTheHandshake(t *testing.T) {
	for _, end := range []func(*Conn){(*Conn).Close, (*Conn).Abort} {
		l := start(t)
		server, client := configs()
		c, peer := accepted(t, l)
		done := make(chan error, 1)
		do(t, l, func() { c.StartTLS(server, func(err error) { done <- err }) })
		lateCancel(t, l, c, tls.Client(peer, client), func() { end(c) })
		if err := recv(t, done); !errors.Is(err, ErrAborted) {
			t.Errorf("done(%v) instead of %v", err, ErrAborted)
		}
		until(t, l, func() bool { return c.dead })
	}
}
