package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// An agent that is to follow asks, and has the directory as soon as it is given up; one that waits does not ask; and what was asked is
// not asked of the next one.
func TestRunDirectoryIsHandedOver(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	first, err := take(ctx, dir, true)
	if err != nil {
		t.Fatal(err)
	}
	given := make(chan error, 1)
	go func() { given <- asked(ctx, dir) }()
	waiting, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		l, err := take(waiting, dir, false)
		if err == nil {
			l.release(false)
		}
		ended <- err
	}()
	select {
	case err := <-given:
		t.Errorf("given up, and nobody has asked: %v", err)
	case <-time.After(2 * askedEvery):
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that waited: %v", err)
	}
	second := make(chan *lock, 1)
	go func() {
		l, err := take(ctx, dir, true)
		if err != nil {
			t.Error(err)
		}
		second <- l
	}()
	if err := <-given; err != nil {
		t.Fatal(err)
	}
	first.release(false)
	l := <-second
	if l == nil {
		return
	}
	defer l.release(false)
	if _, err := os.Stat(filepath.Join(dir, nextFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was asked is still there: %v", err)
	}
	short, end := context.WithTimeout(ctx, 2*askedEvery)
	defer end()
	if err := asked(short, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody asks, and it hears %v", err)
	}
}
