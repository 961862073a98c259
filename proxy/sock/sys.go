package sock

import (
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below are raw: on a non-blocking socket they cannot block, and telling Go's scheduler about each of them
// would cost more than many of them take.

// sysRead is recv(2), which takes a shorter way through the kernel than read(2): no file position, no notification.
func sysRead(fd int, p []byte) (int, syscall.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// sysWrite never raises SIGPIPE: Go ignores it on descriptors above 2, and MSG_NOSIGNAL makes it certain.
func sysWrite(fd int, p []byte) (int, syscall.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

func sysWritev(fd int, v []unix.Iovec) (int, syscall.Errno) {
	m := unix.Msghdr{Iov: &v[0]}
	m.SetIovlen(len(v))
	for {
		n, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&m)), unix.MSG_NOSIGNAL)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// sysAccept takes a connection from the queue of a listening socket.
func sysAccept(fd int) (int, netip.AddrPort, syscall.Errno) {
	for {
		var sa unix.RawSockaddrAny
		size := uint32(unsafe.Sizeof(sa))
		n, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)),
			unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if e == unix.EINTR {
			continue
		}
		return int(n), addrPort(&sa), e
	}
}

// addrPort reads a kernel address; IPv4 is unmapped, other families give the zero AddrPort.
func addrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	switch sa.Addr.Family {
	case unix.AF_INET:
		p := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(p.Addr), port(p.Port))
	case unix.AF_INET6:
		p := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom16(p.Addr).Unmap(), port(p.Port))
	}
	return netip.AddrPort{}
}

// port turns a port in network order, as it lies in memory, into a number.
func port(raw uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&raw))
	return uint16(b[0])<<8 | uint16(b[1])
}

// sockName asks for one of a socket's two names: SYS_GETSOCKNAME or SYS_GETPEERNAME.
func sockName(fd int, call uintptr) netip.AddrPort {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	if _, _, e := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size))); e != 0 {
		return netip.AddrPort{}
	}
	return addrPort(&sa)
}

// sockError takes the pending error of a socket.
func sockError(fd int) error {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if v == 0 {
		return nil
	}
	return syscall.Errno(v)
}

// Keepalive finds peers that vanished: after a minute of silence, four probes of 15 s.
const (
	keepIdle     = 60
	keepInterval = 15
	keepCount    = 4
)

// setOptions prepares a TCP socket. On a listening socket it does so for every connection accepted from it, because
// Linux copies these options. Errors are ignored: other kinds of sockets (a test's socketpair) do not have them, and
// none is needed for correctness.
//
// TCP_USER_TIMEOUT is left alone on purpose: the kernel applies it to a closed window too (tcp_probe_timer), and would
// so end the connection of an application that merely takes its time to read.
func setOptions(fd int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepIdle)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepInterval)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepCount)
	// An urgent byte (RFC 9293, 3.8.5) stays in the stream instead of vanishing.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
}

// resetClose closes fd so that a TCP peer gets RST.
func resetClose(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 0})
	_ = unix.Close(fd)
}

func setUserTimeout(fd int, d time.Duration) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
}
