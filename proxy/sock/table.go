package sock

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// GrowTable has the kernel make room for n descriptors of this process, or as many as it may have. Otherwise it doubles the table whenever it
// is full, and where there are several threads it waits for an RCU grace period then (fs/file.c, expand_fdtable): some ten milliseconds, in
// which whoever has opened something, and be it a loop with all its connections, stands still. The room takes 8 bytes for each in the
// kernel, and stays.
func GrowTable(n int) error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make room for descriptors: %w", err)
	}
	defer unix.Close(fd)
	last, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, min(n, Descriptors())-1)
	if err != nil {
		return fmt.Errorf("make room for %d descriptors: %w", n, err)
	}
	return unix.Close(last)
}
