package loop

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// echo counts the bytes that come and answers each.
type echo struct {
	l  *Loop
	fd int
}

func (e *echo) Ready(Events) {
	var b [64]byte
	if n, err := unix.Read(e.fd, b[:]); err == nil && n > 0 {
		_, _ = unix.Write(e.fd, b[:n])
	}
}

func (e *echo) Stopped() { unix.Close(e.fd) }

// TestNoWakeUpIsLost lets bytes, posts and timers come while the loop waits in either way, and while it passes from one to
// the other.
func TestNoWakeUpIsLost(t *testing.T) {
	l := start(t)
	for _, mode := range []struct {
		name  string
		loops int // beside the one that is tested
		keep  bool
	}{
		{"processor to spare", 0, false},
		{"none to spare", runtime.GOMAXPROCS(0), false},
		{"none to spare, and kept", runtime.GOMAXPROCS(0), true},
	} {
		t.Run(mode.name, func(t *testing.T) {
			runs(mode.loops)
			defer runs(-mode.loops)
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(p[1])
			_ = unix.SetNonblock(p[0], true)
			if err := l.Do(func() {
				l.keep = mode.keep
				if err := l.Watch(p[0], &echo{l, p[0]}); err != nil {
					t.Error(err)
				}
			}); err != nil {
				t.Fatal(err)
			}
			_ = unix.SetsockoptTimeval(p[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
			var b [1]byte
			for i := range 60 {
				gap := time.Duration(i%16) * time.Millisecond // around patience
				wait := make(chan struct{})
				time.AfterFunc(gap, func() { close(wait) })
				<-wait
				switch i % 3 {
				case 0:
					if _, err := unix.Write(p[1], b[:]); err != nil {
						t.Fatal(err)
					}
					if n, err := unix.Read(p[1], b[:]); n != 1 {
						t.Fatalf("after %v of silence: no answer to a byte: %v", gap, err)
					}
				case 1:
					posted := make(chan struct{})
					l.Post(func() { close(posted) })
					recv(t, posted)
				case 2:
					due := make(chan struct{})
					l.Post(func() { l.After(gap, func() { close(due) }) })
					recv(t, due)
				}
			}
		})
	}
}

// TestWaitingLoopStopsNobody: what needs every goroutine to stand still gets it, although the scheduler does not know that
// the loop waits.
func TestWaitingLoopStopsNobody(t *testing.T) {
	l := start(t)
	_ = l.Do(func() { l.patience = time.Hour })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 10 {
			_ = l.Do(func() {}) // the loop is about to wait
			runtime.GC()
		}
	}()
	recv(t, done)
}
