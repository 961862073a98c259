package proxy

import (
	"bufio"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

// trimAfter is when start-up is over, and what only it needed can go.
const trimAfter = 3 * time.Second

// trimSoon gives the memory of start-up back, once: unused heap, and the pages of the program's file that are not
// needed any more. Those still in use come back from the page cache at their next use, without reading a disk.
func trimSoon(l *loop.Loop) {
	l.Post(func() {
		l.After(trimAfter, func() {
			go func() {
				debug.FreeOSMemory()
				trimText()
			}()
		})
	})
}

// trimText drops the read-only mappings of the executable from this process (madvise(2), MADV_DONTNEED).
func trimText() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	for sc := bufio.NewScanner(maps); sc.Scan(); {
		// ADDRESS PERMISSIONS OFFSET DEVICE INODE PATH (proc(5))
		f := strings.Fields(sc.Text())
		if len(f) < 6 || f[5] != exe || strings.Contains(f[1], "w") {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		a, err1 := strconv.ParseUint(from, 16, 64)
		z, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil && z > a {
			// Advice: that it is not taken does no harm.
			_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, uintptr(a), uintptr(z-a), unix.MADV_DONTNEED)
		}
	}
}
