package sock

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"conduit.io/conduit/proxy/loop"
)

// helloOf is a whole ClientHello of a client that will say no more.
func helloOf(t testing.TB) []byte {
	t.Helper()
	_, client := configs()
	a, b := net.Pipe()
	defer a.Close()
	go func() { _ = tls.Client(b, client).Handshake() }()
	p := make([]byte, 16<<10)
	n, err := a.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	return p[:n]
}

// flood is a server, and handshakes with it that never come to their end.
type flood struct {
	t     *testing.T
	l     *loop.Loop
	addr  string
	conns <-chan *Conn
	held  []*Conn
	ended chan error
}

func newFlood(t *testing.T, l *loop.Loop) *flood {
	f := &flood{t: t, l: l, ended: make(chan error, 4*maxHandshakes)}
	f.addr, f.conns = listen(t, l)
	t.Cleanup(func() {
		do(t, l, func() {
			for _, c := range f.held {
				c.Abort()
			}
		})
		for range f.held {
			recv(t, f.ended)
		}
		until(t, l, serverSlots.idle)
	})
	return f
}

// from connects from a loopback address; the server shakes hands, and calls done.
func (f *flood) from(ip string, done func(error)) (net.Conn, *Conn) {
	f.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	peer, err := d.Dial("tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { peer.Close() })
	server, _ := configs()
	c := recv(f.t, f.conns)
	do(f.t, f.l, func() { c.StartTLS(server, done) })
	return peer, c
}

// halfOpen begins n handshakes with what the client says first, and no more.
func (f *flood) halfOpen(n int, ip string, first []byte) {
	f.t.Helper()
	for range n {
		peer, c := f.from(ip, func(err error) { f.ended <- err })
		f.held = append(f.held, c)
		if _, err := peer.Write(first); err != nil {
			f.t.Fatal(err)
		}
	}
}

// good shakes hands as one should, within half the time that a handshake may take.
func (f *flood) good(ip string) {
	f.t.Helper()
	_, client := configs()
	done := make(chan error, 1)
	peer, c := f.from(ip, func(err error) { done <- err })
	_ = peer.SetDeadline(time.Now().Add(handshakeTimeout / 2))
	if err := tls.Client(peer, client).Handshake(); err != nil {
		f.t.Errorf("handshake of %s: %v", ip, err)
	}
	if err := recv(f.t, done); err != nil {
		f.t.Errorf("handshake of %s, at the server: %v", ip, err)
	}
	do(f.t, f.l, c.Abort)
}

func (s *limiter) count() (active, waits int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.active), s.waits
}

// TestHalfOpenHandshakes: peers that begin more handshakes than there are turns, and finish none, keep nobody waiting,
// neither others nor the clients at their own address.
func TestHalfOpenHandshakes(t *testing.T) {
	l := start(t)
	f := newFlood(t, l)
	hello := helloOf(t)
	for i := range 12 {
		f.halfOpen(maxOfOnePeer, fmt.Sprintf("127.0.0.%d", 2+i), hello)
	}
	until(t, l, func() bool { active, waits := serverSlots.count(); return active >= maxHandshakes && waits > 0 })
	f.good("127.0.0.1")
	f.good("127.0.0.2")
}

// TestHalfAHelloTakesNoTurn: whoever has not said what he wants costs no goroutine, however many there are.
func TestHalfAHelloTakesNoTurn(t *testing.T) {
	l := start(t)
	f := newFlood(t, l)
	hello := helloOf(t)
	f.halfOpen(maxHandshakes, "127.0.0.2", hello[:1])
	f.halfOpen(maxHandshakes, "127.0.0.3", hello[:len(hello)-1])
	if active, waits := serverSlots.count(); active != 0 || waits != 0 {
		t.Errorf("%d handshakes are under way, %d wait", active, waits)
	}
	f.good("127.0.0.1")
}

// TestHelloInPieces: a slow client is served all the same, whatever the pieces.
func TestHelloInPieces(t *testing.T) {
	l := start(t)
	f := newFlood(t, l)
	_, client := configs()
	for _, size := range []int{1, 4, 5, 6, 100} {
		done := make(chan error, 1)
		peer, c := f.from("127.0.0.1", func(err error) { done <- err })
		if err := tls.Client(pieces{peer, size}, client).Handshake(); err != nil {
			t.Errorf("pieces of %d: %v", size, err)
		}
		if err := recv(t, done); err != nil {
			t.Errorf("pieces of %d, at the server: %v", size, err)
		}
		do(t, l, c.Abort)
	}
}

// pieces writes a few bytes at a time.
type pieces struct {
	net.Conn
	size int
}

func (p pieces) Write(b []byte) (n int, err error) {
	for piece := range chunks(b, p.size) {
		m, err := p.Conn.Write(piece)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

func chunks(b []byte, size int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for r := bytes.NewBuffer(b); r.Len() > 0; {
			if !yield(r.Next(size)) {
				return
			}
		}
	}
}

// one is a handshake of nobody.
func one(l *loop.Loop, ip string) *handshake {
	return &handshake{c: &Conn{l: l, remote: netip.AddrPortFrom(netip.MustParseAddr(ip), 1)}}
}

// TestFullQueueIsFair: where too many wait, the peer that has most of them gives way to one that has few.
func TestFullQueueIsFair(t *testing.T) {
	l := start(t)
	s := limiter{patience: time.Hour}
	defer func() { s.timer.Stop() }()
	s.busy(2*maxHandshakes, netip.MustParseAddr("192.0.2.9"))
	for range maxWaiting {
		if !s.enter(one(l, "192.0.2.1")) {
			t.Fatal("refused before the queue was full")
		}
	}
	greedy := netip.MustParseAddr("192.0.2.1")
	second := s.waiting[greedy][1]
	if s.enter(one(l, "192.0.2.1")) {
		t.Error("one more of the peer that has the whole queue is let in")
	}
	if !s.enter(one(l, "192.0.2.2")) {
		t.Error("a peer that has none waiting is refused")
	}
	if len(s.waiting[greedy]) != maxWaiting-1 || s.waits != maxWaiting || s.waiting[greedy][0] != second || len(s.turns) != 2 {
		t.Errorf("queue of %d: want the oldest of the greedy peer dropped", s.waits)
	}
	last := s.waiting[netip.MustParseAddr("192.0.2.2")][0]
	if !s.leaveQueue(last) || s.leaveQueue(last) || len(s.waiting) != 1 || len(s.turns) != 1 {
		t.Errorf("after the second peer has left: %v", s.turns)
	}
}

// TestTurnsRotate: peers that wait have their turns one after the other, not in the order of arrival.
func TestTurnsRotate(t *testing.T) {
	l := start(t)
	s := limiter{patience: time.Hour}
	release := s.busy(2*maxHandshakes, netip.MustParseAddr("192.0.2.9"))
	for _, ip := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"} {
		if !s.enter(one(l, ip)) {
			t.Fatal("refused")
		}
	}
	s.timer.Stop()
	if s.next() != nil {
		t.Fatal("one has a turn although none is free")
	}
	for h := range s.active {
		delete(s.active, h)
	}
	for i, want := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1", "192.0.2.1"} {
		if got := s.next().c.remote.Addr().String(); got != want {
			t.Fatalf("turn %d is that of %s, want %s", i, got, want)
		}
	}
	release()
	if !s.idle() {
		t.Errorf("%d wait", s.waits)
	}
}
