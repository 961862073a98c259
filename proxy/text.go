package proxy

import (
	"bufio"
	"errors"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process touches a small part of its program, here and there. But at every page that it touches, the kernel maps those
// around it too (fault-around, 64 KiB), which makes the program's resident part three times what is used. The
// kernel leaves that be where userfaultfd(2) watches for writes, even if asynchronously, that is without ever being told of
// any: handle_mm_fault's uffd_disable_fault_around. Nobody writes to a program, so that nothing else comes of it.
// Linux 6.7 can do it for files, without privileges; elsewhere the resident part is merely larger.
const (
	uffdUserModeOnly = 1
	uffdAPI          = 0xaa
	uffdWPAsync      = 1 << 15
	uffdModeWP       = 1 << 1
	ioctlUffdAPI     = 0xc018aa3f
	ioctlUffdReg     = 0xc020aa00
)

// span is a range of addresses.
type span struct{ from, to uintptr }

// program is the read-only mappings of the executable.
func program() ([]span, error) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	var found []span
	sc := bufio.NewScanner(maps)
	for sc.Scan() {
		// ADDRESS PERMISSIONS OFFSET DEVICE INODE PATH (proc(5))
		f := strings.Fields(sc.Text())
		if len(f) < 6 || f[5] != exe || strings.Contains(f[1], "w") {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		a, err1 := strconv.ParseUint(from, 16, 64)
		z, err2 := strconv.ParseUint(to, 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		found = append(found, span{uintptr(a), uintptr(z)})
	}
	return found, sc.Err()
}

// drop takes the pages out of this process (madvise(2), MADV_DONTNEED); they stay in the page cache, and come back when
// they are touched. It is advice: that it is not taken does no harm.
func drop(spans []span) {
	for _, s := range spans {
		_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, s.from, s.to-s.from, unix.MADV_DONTNEED)
	}
}

// mapSingly makes the kernel map only those pages that are touched, as long as the descriptor that it returns is open.
func mapSingly(spans []span) (int, error) {
	fd, _, e := unix.RawSyscall(unix.SYS_USERFAULTFD, uffdUserModeOnly|unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if e != 0 {
		return -1, os.NewSyscallError("userfaultfd", e)
	}
	api := struct{ api, features, ioctls uint64 }{api: uffdAPI, features: uffdWPAsync}
	_, _, e = unix.RawSyscall(unix.SYS_IOCTL, fd, ioctlUffdAPI, uintptr(unsafe.Pointer(&api)))
	for i := 0; i < len(spans) && e == 0; i++ {
		reg := struct{ start, length, mode, ioctls uint64 }{uint64(spans[i].from), uint64(spans[i].to - spans[i].from), uffdModeWP, 0}
		_, _, e = unix.RawSyscall(unix.SYS_IOCTL, fd, ioctlUffdReg, uintptr(unsafe.Pointer(&reg)))
	}
	if e != 0 {
		unix.Close(int(fd))
		return -1, os.NewSyscallError("userfaultfd", e)
	}
	return int(fd), nil
}
