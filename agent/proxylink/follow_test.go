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

// levels takes down at which level a message was logged.
type levels struct {
	slog.Handler
	of  string
	got chan slog.Level
}

func (l *levels) Enabled(context.Context, slog.Level) bool { return true }

func (l *levels) Handle(_ context.Context, r slog.Record) error {
	if r.Message == l.of {
		select {
		case l.got <- r.Level:
		default:
		}
	}
	return nil
}

// A proxy that starts together with the agent is not there at once, which is no error; one that does not come is.
func TestProxyThatStartsIsNoError(t *testing.T) {
	l := &levels{Handler: slog.DiscardHandler, of: "proxy not ready", got: make(chan slog.Level, 100)}
	s := New(Config{RunDir: t.TempDir(), Log: slog.New(l)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	for i := range starting + 1 {
		want := slog.LevelInfo
		if i >= starting {
			want = slog.LevelError
		}
		select {
		case got := <-l.got:
			if got != want {
				t.Errorf("try %d is logged as %v, want %v", i, got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the supervisor does not try again")
		}
	}
}
