package sock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"testing"
	"time"

	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/tests/leak"

	"golang.org/x/sys/unix"
)

// TestMain fails when a test leaves a descriptor or a goroutine behind.
func TestMain(m *testing.M) {
	if _, err := home(); err != nil {
		panic(err)
	}
	signal.Notify(make(chan os.Signal, 1), os.Interrupt) // the goroutine that fuzzing would leave behind
	signal.Reset(os.Interrupt)
	if os.Getenv(fallbackEnv) != "" {
		known = false
	}
	os.Exit(leak.Main(m))
}

func start(t testing.TB) *loop.Loop {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go l.Run(ctx)
	t.Cleanup(func() {
		cancel()
		<-l.Done()
	})
	return l
}

func do(t testing.TB, l *loop.Loop, f func()) {
	t.Helper()
	if err := l.Do(f); err != nil {
		t.Fatal(err)
	}
}

const patience = 20 * time.Second

func recv[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-c:
		if !ok {
			t.Fatal("channel closed")
		}
		return v
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		t.Fatalf("nothing came in time\n%s", buf[:runtime.Stack(buf, true)])
		panic("unreachable")
	}
}

// probe is a receiver that notes everything and complains about calls out of order.
type probe struct {
	t      testing.TB
	c      *Conn
	data   bytes.Buffer
	onData func(p []byte)
	onEOF  func()
	drains int
	gotEOF bool
	ended  bool
	eof    chan struct{}
	closed chan error
}

func watch(t testing.TB, c *Conn) *probe {
	p := &probe{t: t, c: c, eof: make(chan struct{}, 1), closed: make(chan error, 1)}
	c.SetReceiver(p)
	return p
}

func (p *probe) Data(b []byte) {
	if p.gotEOF || p.ended || p.c.paused || len(b) == 0 {
		p.t.Errorf("Data of %d bytes: after EOF %v, after Closed %v, paused %v", len(b), p.gotEOF, p.ended, p.c.paused)
	}
	if p.onData != nil {
		p.onData(b)
		return
	}
	p.data.Write(b)
}

func (p *probe) EOF() {
	if p.gotEOF || p.ended {
		p.t.Error("EOF twice, or after Closed")
	}
	p.gotEOF = true
	p.eof <- struct{}{}
	if p.onEOF != nil {
		p.onEOF()
	}
}

func (p *probe) Drained() {
	if p.ended || p.c.Backlog() > flow.LowWater {
		p.t.Errorf("Drained with a backlog of %d, after Closed %v", p.c.Backlog(), p.ended)
	}
	p.drains++
}

func (p *probe) Closed(err error) {
	if p.ended {
		p.t.Error("Closed twice")
	}
	p.ended = true
	p.closed <- err
}

// accepted makes a TCP connection over loopback: the peer is Go's own, the other end a Conn without a receiver.
func accepted(t testing.TB, l *loop.Loop) (*Conn, *net.TCPConn) {
	t.Helper()
	ln, conns := listen(t, l)
	peer, err := net.Dial("tcp", ln)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	_ = peer.SetDeadline(time.Now().Add(patience))
	return recv(t, conns), peer.(*net.TCPConn)
}

// listen serves on loopback; connections come out of the channel.
func listen(t testing.TB, l *loop.Loop) (string, <-chan *Conn) {
	t.Helper()
	conns := make(chan *Conn, 4096)
	addr := serve(t, l, func(c *Conn) { conns <- c })
	return addr, conns
}

func serve(t testing.TB, l *loop.Loop, accept func(*Conn)) string {
	t.Helper()
	s := server(t, l, accept)
	var addr string
	do(t, l, func() { addr = s.Addr().String() })
	return addr
}

func server(t testing.TB, l *loop.Loop, accept func(*Conn)) *Listener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // Go's default; it does not hand socket options down to accepted sockets
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	defer f.Close()
	var s *Listener
	do(t, l, func() { s, err = Listen(l, f, accept) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Do(s.Close) })
	return s
}

// dialed is Dial, waited for.
func dialed(t testing.TB, l *loop.Loop, o DialOptions) (*Conn, error) {
	t.Helper()
	type result struct {
		c   *Conn
		err error
	}
	ch := make(chan result, 1)
	do(t, l, func() { Dial(l, o, func(c *Conn, err error) { ch <- result{c, err} }) })
	r := recv(t, ch)
	return r.c, r.err
}

func addrPortOf(t testing.TB, s string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// relay copies one connection to another as the proxy's opaque codec does, and notes the greatest backlog.
type relay struct {
	self, other *Conn
	peer        *relay
	most        *int
	closed      func(error)
	waiting     bool // other is to be resumed when self has drained
	spliced     *int // bytes that took the shortcut; nil: there is none
}

func (r *relay) Beyond() flow.Conn {
	if r.spliced == nil {
		return nil
	}
	return r.other
}

func (r *relay) Passed(n int) { *r.spliced += n }

func join(a, b *Conn, most *int, closed func(error)) (ra, rb *relay) {
	ra = &relay{self: a, other: b, most: most, closed: closed}
	rb = &relay{self: b, other: a, most: most, closed: closed}
	ra.peer, rb.peer = rb, ra
	a.SetReceiver(ra)
	b.SetReceiver(rb)
	return ra, rb
}

func (r *relay) Data(p []byte) {
	r.other.Write(p)
	n := r.other.Backlog()
	*r.most = max(*r.most, n)
	if n > flow.HighWater {
		r.self.Pause()
		r.peer.waiting = true
	}
}

func (r *relay) EOF() { r.other.CloseWrite() }

func (r *relay) Drained() {
	if r.waiting {
		r.waiting = false
		r.other.Resume()
	}
}

func (r *relay) Closed(err error) {
	if err != nil {
		r.other.Abort()
	}
	r.closed(err)
}

func isReset(err error) bool {
	return errors.Is(err, unix.ECONNRESET)
}

func readAll(t testing.TB, r io.Reader) []byte {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read all: %v after %d bytes", err, len(b))
	}
	return b
}
