package sock

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

// spliced is a relay between two peers; bytes that nobody sees are counted.
type spliced struct {
	l           *loop.Loop
	from, to    *net.TCPConn
	a, b        *Conn
	taken       int // read by fill
	there, back int
	most        int
	closed      chan error
}

func startSpliced(t *testing.T, l *loop.Loop) *spliced {
	s := &spliced{l: l, closed: make(chan error, 2)}
	s.a, s.from = accepted(t, l)
	s.b, s.to = accepted(t, l)
	do(t, l, func() {
		ra, rb := join(s.a, s.b, &s.most, func(err error) { s.closed <- err })
		ra.spliced, rb.spliced = &s.there, &s.back
	})
	return s
}

// fill sends until a pipe is full and nothing more is taken, and reports how much that was, less what had to be read to get
// the pipe used.
func (s *spliced) fill(t *testing.T) int {
	t.Helper()
	sent := 0
	buf, zeros := make([]byte, 1<<20), make([]byte, 256<<10)
	_ = s.from.SetWriteDeadline(time.Now().Add(patience))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			n, err := s.from.Write(zeros)
			sent += n
			if err != nil {
				return
			}
		}
	}()
	for stuck := false; !stuck; {
		paused := false
		until(t, s.l, func() bool { stuck, paused = s.a.stuck, s.a.paused; return stuck || paused })
		if paused { // it was copied before it was much
			n, err := s.to.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			s.taken += n
		}
	}
	_ = s.from.SetWriteDeadline(time.Now())
	<-done
	_ = s.from.SetWriteDeadline(time.Time{})
	return sent - s.taken
}

// ended waits until no pipe is in use.
func (s *spliced) ended(t *testing.T) {
	t.Helper()
	until(t, s.l, func() bool { ps := pipesOf(s.l); return ps.made == len(ps.idle) })
}

// TestSplicedRelay is TestRelay with bytes that take the shortcut.
func TestSplicedRelay(t *testing.T) {
	l := start(t)
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	var most, there, back int
	closed := make(chan error, 2)
	addr := serve(t, l, func(a *Conn) {
		Dial(l, DialOptions{Addr: addrPortOf(t, backend.Addr().String())}, func(b *Conn, err error) {
			if err != nil {
				t.Error(err)
				return
			}
			ra, rb := join(a, b, &most, func(err error) { closed <- err })
			ra.spliced, rb.spliced = &there, &back
		})
	})
	exchange(t, func() (net.Conn, error) { return net.Dial("tcp", addr) }, backend.Accept)
	for range 2 {
		if err := recv(t, closed); err != nil {
			t.Errorf("Closed(%v)", err)
		}
	}
	if there == 0 || back == 0 {
		t.Errorf("%d and %d bytes of %d were spliced", there, back, relaySize)
	}
	checkBacklog(t, most)
}

// TestSpliceIsForBulk: a connection of which little is heard has no use for it.
func TestSpliceIsForBulk(t *testing.T) {
	l := start(t)
	s := startSpliced(t, l)
	answer := make([]byte, 1000)
	for range 50 {
		if _, err := s.from.Write(answer); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s.to, answer); err != nil {
			t.Fatal(err)
		}
	}
	do(t, l, func() {
		if s.there != 0 {
			t.Errorf("%d bytes were spliced", s.there)
		}
		s.a.Abort()
	})
	recv(t, s.closed)
}

// TestSpliceEnds ends a connection in every way while a pipe has bytes that nobody takes.
func TestSpliceEnds(t *testing.T) {
	l := start(t)
	for name, end := range map[string]func(s *spliced, sent int){
		"the destination resets": func(s *spliced, _ int) {
			_ = s.to.SetLinger(0)
			s.to.Close()
			if err := errors.Join(recv(t, s.closed), recv(t, s.closed)); !isReset(err) {
				t.Errorf("Closed(%v), want a reset", err)
			}
		},
		"the source resets": func(s *spliced, _ int) {
			_ = s.from.SetLinger(0)
			s.from.Close()
			until(t, l, func() bool { return s.a.reset })
			_, _ = io.Copy(io.Discard, s.to)
			if err := errors.Join(recv(t, s.closed), recv(t, s.closed)); !isReset(err) {
				t.Errorf("Closed(%v), want a reset", err)
			}
		},
		"the source ends": func(s *spliced, sent int) {
			_ = s.from.CloseWrite()
			if n, err := io.Copy(io.Discard, s.to); err != nil || n != int64(sent) {
				t.Errorf("%d bytes arrived, %v; want %d", n, err, sent)
			}
			s.to.Close()
			if err := errors.Join(recv(t, s.closed), recv(t, s.closed)); err != nil {
				t.Errorf("Closed(%v)", err)
			}
		},
		"the destination is closed": func(s *spliced, _ int) {
			want := 0
			do(t, l, func() { want = s.there; s.b.Close() })
			if n, err := io.Copy(io.Discard, s.to); err != nil || n+int64(s.taken) < int64(want) {
				t.Errorf("%d bytes arrived, %v; %d were spliced", n, err, want)
			}
			s.to.Close()
			recv(t, s.closed)
			do(t, l, s.a.Abort)
		},
		"the destination is aborted": func(s *spliced, _ int) { do(t, l, s.b.Abort); recv(t, s.closed) },
		"the source is aborted":      func(s *spliced, _ int) { do(t, l, s.a.Abort); recv(t, s.closed) },
	} {
		s := startSpliced(t, l)
		sent := s.fill(t)
		do(t, l, func() {
			if s.b.pipe == nil || s.b.Backlog() == 0 {
				t.Errorf("%s: nothing waits in a pipe", name)
			}
		})
		end(s, sent)
		s.ended(t)
	}
}

// TestSpliceUrgentByte: a byte sent as urgent keeps its place, with all splicing around it.
func TestSpliceUrgentByte(t *testing.T) {
	l := start(t)
	s := startSpliced(t, l)
	part := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		_, _ = s.from.Write(part)
		rc, _ := s.from.SyscallConn()
		_ = rc.Write(func(fd uintptr) bool { return unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) != unix.EAGAIN })
		_, _ = s.from.Write(part)
		_ = s.from.CloseWrite()
	}()
	want := string(part) + "!" + string(part)
	if got, err := io.ReadAll(s.to); err != nil || string(got) != want {
		t.Errorf("%d bytes arrived, %v; want %d", len(got), err, len(want))
	}
	s.to.Close()
	recv(t, s.closed)
}

// TestSpliceWithoutPipes: where no more pipes may be made, bytes are copied.
func TestSpliceWithoutPipes(t *testing.T) {
	l := start(t)
	s := startSpliced(t, l)
	do(t, l, func() { pipesOf(l).made = maxPipes })
	part := bytes.Repeat([]byte("0123456789"), 300_000)
	go func() { _, _ = s.from.Write(part); _ = s.from.CloseWrite() }()
	if got, err := io.ReadAll(s.to); err != nil || !bytes.Equal(got, part) {
		t.Errorf("%d bytes arrived, %v; want %d", len(got), err, len(part))
	}
	do(t, l, func() {
		if s.there != 0 {
			t.Errorf("%d bytes were spliced", s.there)
		}
		pipesOf(l).made = 0
	})
	s.to.Close()
	recv(t, s.closed)
}
