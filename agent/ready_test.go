package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conduit.io/conduit/agent/enrol"

	"golang.org/x/sys/unix"
)

// The plugin counts as in place while somebody holds the lock, and no longer.
func TestPluginInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), cniLock)
	r := readiness{lock: path}
	wantNot := func(when, says string) {
		t.Helper()
		if err := r.plugin(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", when, err, says)
		}
	}
	wantNot("no file", "yet")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	wantNot("a file that nobody locks", "nobody")
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		t.Fatal(err)
	}
	if err := r.plugin(); err != nil {
		t.Errorf("locked: %v", err)
	}
	changed := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { r.watch(ctx, func() { changed <- struct{}{} }); close(over) }()
	<-changed // it is in place
	f.Close() // as when its process dies
	<-changed
	wantNot("after its end", "nobody")
	cancel()
	<-over
	if err := (readiness{}).plugin(); err != nil {
		t.Errorf("nobody has asked: %v", err)
	}
}

// Whoever asks whether the node is ready has the controller told when the answer is another one, and only then; it has the proxy's trouble.
func TestReadyIsToldWhenItChanges(t *testing.T) {
	why := errors.New("it does not answer")
	r := readiness{manager: enrol.New(enrol.Config{}), trouble: func() error { return why }}
	told := 0
	ask := r.noting(func() { told++ })
	for range 3 {
		if reason, err := ask(t.Context()); reason != "ProxyNotReady" || !errors.Is(err, why) {
			t.Errorf("got %q, %v", reason, err)
		}
	}
	if told != 1 {
		t.Errorf("told %d times, want once", told)
	}
}
