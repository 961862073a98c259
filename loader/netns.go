package loader

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// NetnsCookie is the number by which the kernel names a network namespace; it is never used again, unlike the inode.
func NetnsCookie(netns *os.File) (cookie uint64, err error) {
	err = Inside(netns, func() error {
		cookie, err = CookieHere()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read cookie of network namespace %s: %w", netns.Name(), err)
	}
	return cookie, nil
}

// CookieHere is the cookie of the calling thread's network namespace: for work that is Inside one.
func CookieHere() (cookie uint64, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// Inside runs work on a thread that is inside netns, and waits for it. Work must not start goroutines that need the
// namespace: they run on other threads.
func Inside(netns *os.File, work func() error) error {
	done := make(chan error, 1)
	go func() { done <- enter(netns, work) }()
	return <-done
}

func enter(netns *os.File, work func() error) error {
	// The thread is unlocked only after it is home again; otherwise the runtime ends it with this goroutine.
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread() // nothing has changed
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = work()
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return err
}
