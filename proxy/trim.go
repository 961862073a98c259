package proxy

import (
	"bufio"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

const (
	// trimFirst is when start-up is over, and what only it needed can go.
	trimFirst = 3 * time.Second
	// trimEvery is how often what only a burst needed, handshakes above all, goes as well. The pages in constant use
	// come back at once: some hundred page faults, well below a millisecond.
	trimEvery = 20 * time.Second
	// trimHeap is the heap up to which it is collected and given back entirely, which takes about a millisecond;
	// above, the runtime's own pace is the better one.
	trimHeap = 32 << 20
)

// trim gives memory back that is not in use, again and again: heap, and the pages of the program's file. Those come
// back from the page cache when they are needed, without reading a disk.
func trim(l *loop.Loop) { l.Post(func() { l.After(trimFirst, func() { trimAgain(l) }) }) }

func trimAgain(l *loop.Loop) {
	go func() {
		var m runtime.MemStats
		if runtime.ReadMemStats(&m); m.HeapSys-m.HeapReleased <= trimHeap {
			debug.FreeOSMemory()
		}
		trimText()
	}()
	l.After(trimEvery, func() { trimAgain(l) })
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
