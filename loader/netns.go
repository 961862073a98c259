package loader

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// NetnsCookie is the number by which the kernel names a network namespace; it is never used again, unlike the inode.
func NetnsCookie(netns *os.File) (uint64, error) {
	type result struct {
		cookie uint64
		err    error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread, which is now in another namespace, ends with the goroutine.
		runtime.LockOSThread()
		var r result
		r.cookie, r.err = cookieInside(int(netns.Fd()))
		done <- r
	}()
	r := <-done
	if r.err != nil {
		return 0, fmt.Errorf("read cookie of network namespace %s: %w", netns.Name(), r.err)
	}
	return r.cookie, nil
}

func cookieInside(netns int) (uint64, error) {
	if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
		return 0, fmt.Errorf("setns: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}
