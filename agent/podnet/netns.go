// Package podnet sets up and inspects pods' network namespaces: the rules and routes that turn marked packets round,
// and the proxy's listeners.
package podnet

import (
	"errors"
	"fmt"
	"os"

	"conduit.io/conduit/loader"

	"github.com/vishvananda/netlink"
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

// Netns is an open network namespace of a pod; while it is open, the namespace lives on. It must not be used concurrently. To enter a
// namespace takes a thread of its own, so that is done once: its netlink socket works from outside.
type Netns struct {
	*os.File
	Cookie uint64 // by which the kernel names the namespace; it is never used again, unlike the path
	route  *netlink.Handle
}

// Close closes what is open of the namespace.
func (ns *Netns) Close() error {
	ns.route.Close()
	return ns.File.Close()
}

// Open opens the pod's network namespace at path. The caller must Close it.
func Open(path string) (*Netns, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	n := &Netns{File: f}
	err = loader.Inside(f, func() (err error) {
		if n.Cookie, err = loader.CookieHere(); err == nil {
			n.route, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		}
		return err
	})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return n, nil
}

// OpenAs is Open for the namespace that has the cookie. When another one is at path now, the error is ErrGone.
func OpenAs(path string, cookie uint64) (*Netns, error) {
	n, err := Open(path)
	if err == nil && n.Cookie != cookie {
		n.Close()
		return nil, fmt.Errorf("%s is another namespace now: %w", path, ErrGone)
	}
	return n, err
}

func open(path string) (*os.File, error) {
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
