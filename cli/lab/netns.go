package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) and container runtimes keep named namespaces.
const netnsDir = "/run/netns"

// Netns is a network namespace: one of the lab's, with a name under /run/netns, or what OpenNetns has found.
type Netns struct {
	name string
	path string // empty: the name's, under /run/netns
}

// OpenNetns is the network namespace that a file holds; it stays somebody else's.
func OpenNetns(path string) *Netns { return &Netns{name: path, path: path} }

// Path is the file that holds the namespace, as CNI_NETNS wants it.
func (n *Netns) Path() string { return cmp.Or(n.path, filepath.Join(netnsDir, n.name)) }

// InNetns runs fn on an OS thread that is in the namespace, and returns fn's error. Sockets, files under
// /proc/sys/net and processes that fn makes belong to the namespace; goroutines that fn starts do not run in it.
// fn must return: it must not call testing.T.FailNow.
func (n *Netns) InNetns(fn func() error) error {
	target, err := netns.GetFromPath(n.Path())
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", n.name, err)
	}
	defer target.Close()
	done := make(chan error, 1)
	go func() {
		err := errors.New("function in network namespace did not return")
		defer func() { done <- err }()
		runtime.LockOSThread()
		home, herr := netns.Get()
		if herr != nil {
			err = fmt.Errorf("open the thread's network namespace: %w", herr)
			return
		}
		defer home.Close()
		if serr := netns.Set(target); serr != nil {
			err = fmt.Errorf("enter network namespace %s: %w", n.name, serr)
			return
		}
		// A thread that cannot go home stays locked, so that the runtime ends it with the goroutine.
		defer func() {
			if netns.Set(home) == nil {
				runtime.UnlockOSThread()
			}
		}()
		err = fn()
	}()
	return <-done
}

// Listen is net.ListenConfig.Listen with the socket in the namespace. It may be used from outside as long as it is
// open, and it keeps the namespace alive until closed.
func (n *Netns) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	return n.ListenWith(ctx, &net.ListenConfig{}, network, address)
}

// ListenWith is Listen with the caller's options.
func (n *Netns) ListenWith(ctx context.Context, lc *net.ListenConfig, network, address string) (net.Listener, error) {
	var l net.Listener
	err := n.InNetns(func() (err error) {
		l, err = lc.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// DialContext dials a literal address from inside the namespace. Names are not resolved there: net resolves and
// races on goroutines of its own, which are elsewhere.
func (n *Netns) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return nil, fmt.Errorf("dial %s from namespace %s: not a literal address", address, n.name)
	}
	var c net.Conn
	err = n.InNetns(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Socket is socket(2) in the namespace, for what package net does not make. The caller closes it.
func (n *Netns) Socket(family, kind, proto int) (fd int, err error) {
	err = n.InNetns(func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
		return os.NewSyscallError("socket", err)
	})
	return fd, err
}

// createNetns makes a named namespace, with its loopback still down. It refuses to replace one.
func createNetns(name string) (*Netns, error) {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	n := &Netns{name: name}
	f, err := os.OpenFile(n.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	f.Close()
	done := make(chan error, 1)
	go func() { done <- unshareInto(n.Path()) }()
	if err := <-done; err != nil {
		os.Remove(n.Path())
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	return n, nil
}

// unshareInto binds a new network namespace to path. The calling goroutine's thread goes home afterwards, or ends with
// the goroutine. (The main thread must not stay away: it is what /proc/self means.)
func unshareInto(path string) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	defer func() {
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
}

// remove unmounts the namespace's name. The namespace itself lives on while a process or socket is in it.
func (n *Netns) remove() error {
	err := unix.Unmount(n.Path(), unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace %s: %w", n.name, err)
	}
	if err := os.Remove(n.Path()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", n.name, err)
	}
	return nil
}

// inode identifies the namespace as /proc/PID/ns/net does.
func (n *Netns) inode() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(n.Path(), &st); err != nil {
		return 0, fmt.Errorf("stat network namespace %s: %w", n.name, err)
	}
	return st.Ino, nil
}
