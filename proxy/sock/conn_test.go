package sock

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

func TestPeerClosesFirst(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c) })
	msg := bytes.Repeat([]byte("request "), 50_000)
	go func() { _, _ = peer.Write(msg); _ = peer.CloseWrite() }()
	recv(t, p.eof)
	do(t, l, func() {
		if !bytes.Equal(p.data.Bytes(), msg) {
			t.Errorf("got %d bytes before EOF, want %d", p.data.Len(), len(msg))
		}
		c.Write([]byte("late "))
	})
	do(t, l, func() { c.Write([]byte("answer")); c.CloseWrite(); c.Write([]byte("dropped")) })
	if got := readAll(t, peer); string(got) != "late answer" {
		t.Errorf("peer read %q", got)
	}
	if err := recv(t, p.closed); err != nil {
		t.Errorf("Closed(%v), want nil", err)
	}
}

func TestWeCloseFirst(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c); c.Write([]byte("all")); c.CloseWrite() })
	if got := readAll(t, peer); string(got) != "all" {
		t.Errorf("peer read %q", got)
	}
	for range 100 { // our direction has ended, theirs goes on
		if _, err := peer.Write([]byte("more")); err != nil {
			t.Fatal(err)
		}
	}
	_ = peer.CloseWrite()
	if err := recv(t, p.closed); err != nil {
		t.Errorf("Closed(%v), want nil", err)
	}
	if !p.gotEOF || p.data.Len() != 400 {
		t.Errorf("EOF %v, %d bytes, want 400", p.gotEOF, p.data.Len())
	}
}

func TestHalfClosedStays(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c) })
	_ = peer.CloseWrite()
	recv(t, p.eof)
	do(t, l, func() {
		if p.ended || c.timer != nil {
			t.Error("a half-closed connection is about to end")
		}
		c.Write([]byte("still here"))
	})
	b := make([]byte, 10)
	if _, err := io.ReadFull(peer, b); err != nil || string(b) != "still here" {
		t.Errorf("read %q, %v", b, err)
	}
	_ = peer.SetLinger(0)
	peer.Close()
	if err := recv(t, p.closed); !isReset(err) {
		t.Errorf("Closed(%v) after a reset of a half-closed connection, want ECONNRESET", err)
	}
}

func TestPeerResets(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c) })
	_ = peer.SetLinger(0)
	peer.Close()
	if err := recv(t, p.closed); !isReset(err) || p.gotEOF {
		t.Errorf("Closed(%v), EOF %v; want ECONNRESET and no EOF", err, p.gotEOF)
	}
}

// TestAnswerBeforeReset: a server answers and closes without having read all. Its answer must arrive although our
// next write fails first.
func TestAnswerBeforeReset(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c); c.Pause(); c.Write([]byte("unread")) })
	if _, err := peer.Write([]byte("413")); err != nil {
		t.Fatal(err)
	}
	peer.Close() // with bytes unread: RST
	until(t, l, func() bool { c.Write([]byte("x")); return c.err != nil })
	do(t, l, func() {
		if p.ended {
			t.Error("ended before the answer was read")
		}
		c.Resume()
	})
	if err := recv(t, p.closed); !isReset(err) || p.data.String() != "413" {
		t.Errorf("Closed(%v) after %q", err, p.data.String())
	}
}

// until asks cond on the loop, again and again.
func until(t testing.TB, l *loop.Loop, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		ok := false
		do(t, l, func() { ok = cond() })
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("condition not met in time")
		}
	}
}

func TestAbortResets(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() {
		p = watch(t, c)
		c.Write([]byte("dropped"))
		c.Abort()
		if p.ended {
			t.Error("Closed was called inside Abort")
		}
		c.Abort()
		c.Close()
		c.Write([]byte("x"))
	})
	if err := recv(t, p.closed); !errors.Is(err, ErrAborted) {
		t.Errorf("Closed(%v), want ErrAborted", err)
	}
	if b, err := io.ReadAll(peer); !isReset(err) || len(b) > 0 {
		t.Errorf("peer read %q, %v; want a reset", b, err)
	}
}

// TestCloseDoesNotDestroyTheAnswer closes while the peer is still sending: close(2) alone would send RST, and the peer
// would lose what it has not read.
func TestCloseDoesNotDestroyTheAnswer(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	answer := bytes.Repeat([]byte("a"), 300_000)
	var p *probe
	do(t, l, func() {
		p = watch(t, c)
		p.onData = func([]byte) {
			c.Write(answer)
			c.Close()
			p.onData = func([]byte) { t.Error("Data after Close") }
		}
	})
	for range 20 {
		if _, err := peer.Write(make([]byte, 10_000)); err != nil {
			t.Fatalf("peer's write: %v", err)
		}
	}
	if got := readAll(t, peer); len(got) != len(answer) {
		t.Errorf("peer read %d bytes, want %d", len(got), len(answer))
	}
	peer.Close()
	if err := recv(t, p.closed); err != nil || p.gotEOF {
		t.Errorf("Closed(%v), EOF %v", err, p.gotEOF)
	}
}

func TestCloseGivesUpOnStalledPeer(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() {
		p = watch(t, c)
		for c.Backlog() < 1<<20 {
			c.Write(make([]byte, 256<<10))
		}
		c.Close()
	})
	do(t, l, func() {
		if c.timer == nil || p.ended {
			t.Fatal("no bound on the time that a closed connection takes")
		}
		c.expired()
	})
	if err := recv(t, p.closed); !errors.Is(err, ErrStalled) {
		t.Errorf("Closed(%v), want ErrStalled", err)
	}
	if _, err := io.Copy(io.Discard, peer); !isReset(err) {
		t.Errorf("peer read %v, want a reset", err)
	}
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c); c.Write([]byte("all")); c.Close() })
	if got := readAll(t, peer); string(got) != "all" {
		t.Errorf("peer read %q", got)
	}
	do(t, l, func() { // the peer keeps its own direction open
		if c.timer == nil || p.ended {
			t.Fatal("no bound on the wait for the peer's FIN")
		}
		c.expired()
	})
	if err := recv(t, p.closed); err != nil {
		t.Errorf("Closed(%v), want nil: everything was written", err)
	}
}

func TestDataWaitsForReceiver(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	_, _ = peer.Write([]byte("early"))
	_ = peer.CloseWrite()
	until(t, l, func() bool { return c.canRead && c.hup })
	var p, q *probe
	do(t, l, func() {
		p = watch(t, c)
		p.onData = func(b []byte) { // hand over in the middle
			q = watch(t, c)
			q.data.Write(b[2:])
		}
		if p.data.Len() > 0 {
			t.Error("Data inside SetReceiver")
		}
	})
	until(t, l, func() bool { return q != nil && q.gotEOF })
	do(t, l, func() {
		if q.data.String() != "rly" || p.gotEOF {
			t.Errorf("second receiver has %q; EOF went to the first: %v", q.data.String(), p.gotEOF)
		}
		c.Close()
	})
	if err := recv(t, q.closed); err != nil {
		t.Errorf("Closed(%v)", err)
	}
}

func TestWaterMarks(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() {
		p = watch(t, c)
		for c.Backlog() <= flow.HighWater {
			c.Write(make([]byte, 32<<10))
		}
	})
	var sent int
	do(t, l, func() {
		if p.drains != 0 {
			t.Error("Drained while nobody reads")
		}
		sent = c.Backlog()
	})
	go func() { _, _ = io.Copy(io.Discard, peer) }()
	until(t, l, func() bool { return c.Backlog() == 0 })
	do(t, l, func() {
		if p.drains != 1 {
			t.Errorf("Drained %d times after a backlog of %d, want once", p.drains, sent)
		}
		if c.out.head != nil {
			t.Error("an empty queue keeps memory")
		}
		c.Abort()
	})
	recv(t, p.closed)
}

// TestPauseIsExact pauses and resumes at random, from inside and outside of Data; probe complains of any Data that
// comes while paused.
func TestPauseIsExact(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	const total = 8 << 20
	want := make([]byte, total)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	var p *probe
	do(t, l, func() {
		p = watch(t, c)
		p.onData = func(b []byte) {
			p.data.Write(b)
			if rand.IntN(3) == 0 {
				c.Pause()
				switch rand.IntN(3) {
				case 0:
					c.Resume()
				case 1:
					l.After(0, c.Resume)
				default:
					l.After(time.Duration(rand.IntN(300))*time.Microsecond, c.Resume)
				}
			}
		}
	})
	go func() {
		for b := want; len(b) > 0; {
			n := min(len(b), 1+rand.IntN(100_000))
			_, _ = peer.Write(b[:n])
			b = b[n:]
		}
		_ = peer.CloseWrite()
	}()
	recv(t, p.eof)
	do(t, l, func() {
		if !bytes.Equal(p.data.Bytes(), want) {
			t.Errorf("got %d bytes, or other ones; want %d", p.data.Len(), total)
		}
		c.Close()
	})
	recv(t, p.closed)
}

func TestPausedConnectionThatWasReset(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c); c.Pause() })
	_, _ = peer.Write([]byte("unread"))
	_ = peer.SetLinger(0)
	peer.Close()
	until(t, l, func() bool { return c.timer != nil })
	do(t, l, func() {
		if p.ended {
			t.Error("ended while paused, with bytes unread")
		}
		c.expired()
	})
	if err := recv(t, p.closed); !isReset(err) {
		t.Errorf("Closed(%v), want ECONNRESET", err)
	}
}

func TestUrgentByteStaysInTheStream(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c); c.Pause() })
	rc, _ := peer.SyscallConn()
	_, _ = peer.Write([]byte("ab"))
	_ = rc.Control(func(fd uintptr) {
		if err := unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil); err != nil {
			t.Error(err)
		}
	})
	_, _ = peer.Write([]byte("cd"))
	_ = peer.CloseWrite()
	until(t, l, func() bool { return c.hup })
	do(t, l, c.Resume)
	recv(t, p.eof)
	do(t, l, func() {
		if p.data.String() != "ab!cd" {
			t.Errorf("got %q", p.data.String())
		}
		c.Close()
	})
	recv(t, p.closed)
}

func TestSocketpair(t *testing.T) {
	l := start(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var a, b *Conn
	var pa, pb *probe
	do(t, l, func() {
		if a, err = NewConn(l, fds[0]); err != nil {
			t.Fatal(err)
		}
		if b, err = NewConn(l, fds[1]); err != nil {
			t.Fatal(err)
		}
		if a.RemoteAddr().IsValid() || a.LocalAddr().IsValid() || a.TLS() != nil {
			t.Error("a socketpair has no addresses and no TLS")
		}
		pa, pb = watch(t, a), watch(t, b)
		a.Write([]byte("ping"))
		a.CloseWrite()
		pb.onEOF = func() { b.Write([]byte("pong")); b.Close() }
	})
	if ea, eb := recv(t, pa.closed), recv(t, pb.closed); ea != nil || eb != nil {
		t.Errorf("Closed(%v), Closed(%v)", ea, eb)
	}
	if pa.data.String() != "pong" || pb.data.String() != "ping" {
		t.Errorf("got %q and %q", pa.data.String(), pb.data.String())
	}
}

func TestShortConnections(t *testing.T) {
	const total, at = 10_000, 64
	l := start(t)
	open := 0
	addr := serve(t, l, func(c *Conn) {
		open++
		if !c.LocalAddr().Addr().IsLoopback() || c.RemoteAddr().Port() == 0 {
			t.Errorf("addresses %v, %v", c.LocalAddr(), c.RemoteAddr())
		}
		c.SetReceiver(&echo{c: c, open: &open})
	})
	work := make(chan int)
	var wg sync.WaitGroup
	for range at {
		wg.Go(func() {
			for i := range work {
				if err := once(addr, i); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			}
		})
	}
	for i := range total {
		work <- i
	}
	close(work)
	wg.Wait()
	until(t, l, func() bool { return open == 0 })
	do(t, l, func() {
		if n := l.Watched(); n != 1 {
			t.Errorf("%d descriptors are watched, want the listener's alone", n)
		}
	})
}

type echo struct {
	c    *Conn
	open *int
}

func (e *echo) Data(p []byte) { e.c.Write(p) }
func (e *echo) EOF()          { e.c.CloseWrite() }
func (e *echo) Drained()      {}
func (e *echo) Closed(error)  { *e.open-- }

// once sends something of its own and expects it back; every fourth connection ends by a reset.
func once(addr string, i int) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	tc := c.(*net.TCPConn)
	msg := []byte{byte(i), byte(i >> 8), 1, 2, 3}
	if _, err := tc.Write(msg); err != nil {
		return err
	}
	got := make([]byte, len(msg))
	if i%4 == 0 {
		_ = tc.SetLinger(0)
		_, err = io.ReadFull(tc, got)
	} else {
		_ = tc.CloseWrite()
		got, err = io.ReadAll(tc)
	}
	if err == nil && !bytes.Equal(got, msg) {
		err = errors.New("another connection's bytes")
	}
	return err
}

func TestLoopEndClosesConnections(t *testing.T) {
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	go l.Run(t.Context())
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c) })
	l.Stop()
	if err := recv(t, p.closed); !errors.Is(err, loop.ErrStopped) {
		t.Errorf("Closed(%v), want loop.ErrStopped", err)
	}
	<-l.Done()
	if _, err := io.ReadAll(peer); !isReset(err) {
		t.Errorf("peer read %v, want a reset", err)
	}
}

func TestIdleConnectionMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory counts")
	}
	l := start(t)
	const n = 2000
	conns := make([]*Conn, 0, n)
	peers := make([]int, 0, n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // twice: pools keep what they have for one round
	runtime.ReadMemStats(&before)
	do(t, l, func() {
		for range n {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			c, err := NewConn(l, fds[0])
			if err != nil {
				t.Fatal(err)
			}
			c.SetReceiver(&echo{c: c, open: new(int)})
			_, _ = unix.Write(fds[1], make([]byte, 20_000)) // it has carried something
			conns, peers = append(conns, c), append(peers, fds[1])
		}
	})
	do(t, l, func() {
		buf := make([]byte, 30_000)
		for _, fd := range peers {
			_, _ = unix.Read(fd, buf)
		}
	})
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes for each idle connection", per)
	if per > 1024 {
		t.Errorf("an idle connection takes %d bytes, want at most 1024", per)
	}
	for _, fd := range peers {
		unix.Close(fd)
	}
	runtime.KeepAlive(conns)
}

// TestCloseReadsNoFlood: a peer that goes on sending after Close is not read on and on; it still gets the answer.
func TestCloseReadsNoFlood(t *testing.T) {
	l := start(t)
	c, peer := accepted(t, l)
	var p *probe
	do(t, l, func() {
		p = watch(t, c)
		c.Write([]byte("bye"))
		c.Close()
	})
	go func() {
		for b := make([]byte, 64<<10); ; {
			if _, err := peer.Write(b); err != nil {
				return
			}
		}
	}()
	if got := readAll(t, peer); string(got) != "bye" {
		t.Errorf("the peer read %q", got)
	}
	if err := recv(t, p.closed); err != nil || c.unwanted > lingerMax+turnBytes {
		t.Errorf("Closed(%v), %d bytes were read", err, c.unwanted)
	}
}
