package proxylink

import (
	"context"
	"log/slog"
	"syscall"
	"testing"
	"time"
)

// An agent whose proxies are started by others goes over to one that takes the socket, and leaves the former alone, which has
// connections yet; and it gives nothing up for one that it cannot speak with.
func TestProxyThatFollows(t *testing.T) {
	dir := t.TempDir()
	first := startOne(t, dir, "good")
	attached := make(chan *Link, 10)
	detached := make(chan *Link, 10)
	s := New(Config{RunDir: dir, Log: slog.New(slog.DiscardHandler), HelloTimeout: time.Second,
		Attach: func(_ context.Context, l *Link) error {
			attached <- l
			return nil
		},
		Detach: func(l *Link) { detached <- l },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	take := func(c chan *Link) *Link {
		t.Helper()
		select {
		case l := <-c:
			return l
		case <-time.After(10 * time.Second):
			t.Fatal("the agent does not go over")
			return nil
		}
	}
	was := take(attached)
	second := startOne(t, dir, "good")
	next := take(attached)
	if was.Hello().PID != first || next.Hello().PID != second {
		t.Errorf("attached to %d and %d, want %d and %d", was.Hello().PID, next.Hello().PID, first, second)
	}
	if l := take(detached); l != was {
		t.Error("it is not the former that was left")
	}
	if err := syscall.Kill(first, 0); err != nil {
		t.Errorf("the former proxy: %v", err)
	}
	if state, _ := s.State(); state != Ready {
		t.Errorf("the state is %s", state)
	}
	startOne(t, dir, "old")
	select {
	case l := <-attached:
		t.Errorf("it goes over to %+v", l.Hello())
	case <-next.Done():
		t.Error("it has left a proxy for one that speaks another version")
	case <-time.After(4 * lookEvery):
	}
	third := startOne(t, dir, "good")
	if l := take(attached); l.Hello().PID != third {
		t.Errorf("attached to %d, want %d", l.Hello().PID, third)
	}
}

// startOne starts a proxy as its container would, in the place of any other.
func startOne(t *testing.T, dir, kind string) (pid int) {
	t.Helper()
	pid, _, err := start(proxyBinary(t, kind), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}
