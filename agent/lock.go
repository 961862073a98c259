package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pidFile = "agent.pid"
	// nextFile is written by an agent that is to follow the one which has the run directory.
	nextFile = "agent.next"

	lockEvery  = 50 * time.Millisecond
	askedEvery = 100 * time.Millisecond
)

// errRunning is wrapped when another agent has the run directory.
var errRunning = errors.New("another agent is running")

// lock is the hold on a run directory: agent.pid, locked by flock(2) while the agent lives, however it ends.
type lock struct{ f *os.File }

// acquire takes the run directory. With errRunning, pid is the holder's.
func acquire(runDir string) (l *lock, pid int, err error) {
	path := filepath.Join(runDir, pidFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, 0, fmt.Errorf("lock run directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		data, _ := os.ReadFile(path)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
		return nil, pid, errRunning
	}
	if err == nil && !named(f, path) {
		f.Close()
		return acquire(runDir) // an uninstall removed the file between open and lock
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("lock run directory: %w", err)
	}
	return &lock{f}, os.Getpid(), nil
}

func named(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// release lets go; remove deletes the file, too.
func (l *lock) release(remove bool) {
	if remove {
		os.Remove(l.f.Name())
	} else {
		_ = l.f.Truncate(0)
	}
	l.f.Close()
}

// take waits for the run directory until ctx ends. With ask, whoever has it is asked to give it up.
func take(ctx context.Context, runDir string, ask bool) (*lock, error) {
	next := filepath.Join(runDir, nextFile)
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for asked := false; ; {
		l, _, err := acquire(runDir)
		if err == nil {
			_ = os.Remove(next) // if it stays, the directory is given up once for nobody, and taken back
			return l, nil
		}
		if !errors.Is(err, errRunning) {
			return nil, err
		}
		if ask && !asked {
			if err := os.WriteFile(next, []byte(rand.Text()), 0o600); err != nil {
				return nil, fmt.Errorf("ask for the run directory: %w", err)
			}
			asked = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// asked returns when another agent asks for the run directory, or ctx ends. What was asked of an earlier holder does not count: it was
// taken away with the lock. It looks, and is not told: nodes may have no inotify instance to spare, and an agent must not end for that.
func asked(ctx context.Context, runDir string) error {
	tick := time.NewTicker(askedEvery)
	defer tick.Stop()
	for {
		if _, err := os.Stat(filepath.Join(runDir, nextFile)); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// stop ends the agent that has the run directory, if one has, and takes the directory. stopped is its pid, or 0.
func stop(runDir string, timeout time.Duration) (l *lock, stopped int, err error) {
	end := time.Now().Add(timeout)
	for {
		l, pid, err := acquire(runDir)
		if err == nil || !errors.Is(err, errRunning) {
			return l, stopped, err
		}
		if time.Now().After(end) {
			return nil, stopped, fmt.Errorf("the agent (pid %d) did not end within %v: end it with 'kill -9 %d', and try again", pid, timeout, pid)
		}
		if pid > 0 && stopped == 0 {
			if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
				return nil, 0, fmt.Errorf("stop agent (pid %d): %w", pid, err)
			}
			stopped = pid
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// removeIfEmpty deletes a directory that has become empty; anything else in it is the user's.
func removeIfEmpty(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return err
}
