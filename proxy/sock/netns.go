package sock

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Netns is a network namespace in which sockets can be made. It is safe for use by several loops.
type Netns struct {
	mu sync.Mutex
	fd int
}

// home opens the namespace that the process was started in, once.
var home = sync.OnceValues(func() (int, error) {
	return unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
})

// OpenNetns keeps a duplicate of f, a descriptor of a network namespace (namespaces(7)); f stays the caller's. The
// caller must Close the Netns: it keeps the namespace alive.
func OpenNetns(f *os.File) (*Netns, error) {
	if _, err := home(); err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	fd, err := dupFile(f)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		unix.Close(fd)
		return nil, fmt.Errorf("open network namespace: %s is not one", f.Name())
	}
	return &Netns{fd: fd}, nil
}

// Close lets the namespace go. Sockets made in it stay in it.
func (n *Netns) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		return os.ErrClosed
	}
	err := unix.Close(n.fd)
	n.fd = -1
	return err
}

// socket makes a non-blocking TCP socket in the namespace; a nil Netns is the process's own.
func (n *Netns) socket(family int) (int, error) {
	if n == nil {
		return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		return -1, os.ErrClosed
	}
	back, err := home()
	if err != nil {
		return -1, err
	}
	// Locked, so that neither this goroutine moves to another thread nor another one to this. Go makes new threads
	// from a clean one while the current one is locked (newm in the runtime), so none is born inside.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		return -1, fmt.Errorf("enter network namespace: %w", err)
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if e := unix.Setns(back, unix.CLONE_NEWNET); e != nil {
		// Going on in the pod's namespace would open sockets for other pods in it.
		panic(errors.Join(errors.New("sock: cannot return to the node's network namespace"), e))
	}
	return fd, err
}
