// Package podnet sets up and inspects pods' network namespaces: the rules and routes that turn marked packets round,
// and the proxy's listeners.
package podnet

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

var (
	// ErrGone is wrapped when no network namespace is at a path any more.
	ErrGone = errors.New("network namespace is gone")
	// ErrNotNetns is wrapped when a path leads to something else.
	ErrNotNetns = errors.New("not a network namespace")
	// ErrHost is wrapped when a path leads to the agent's own network namespace.
	ErrHost = errors.New("the node's own network namespace")
)

// Open opens the pod's network namespace at path. The caller must Close the file; while it is open, the namespace
// lives on.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open network namespace %s: %w", path, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if err := checkNetns(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return f, nil
}

func checkNetns(f *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != unix.NSFS_MAGIC {
		// A bind mount that was undone leaves an empty file behind.
		return fmt.Errorf("%w (%w)", ErrNotNetns, ErrGone)
	}
	// Not every namespace file is of the right kind: NS_GET_NSTYPE tells (ioctl_ns(2)).
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("ask for the namespace's type: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return ErrNotNetns
	}
	var there unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &there); err != nil {
		return err
	}
	if host.err != nil {
		return fmt.Errorf("find the node's own network namespace: %w", host.err)
	}
	if there.Dev == host.dev && there.Ino == host.ino {
		return ErrHost
	}
	return nil
}

// host is the namespace that the process began in. It is looked up before any thread can have entered another one.
var host = func() (id struct {
	dev, ino uint64
	err      error
}) {
	var st unix.Stat_t
	id.err = unix.Stat("/proc/thread-self/ns/net", &st)
	id.dev, id.ino = st.Dev, st.Ino
	return id
}()
