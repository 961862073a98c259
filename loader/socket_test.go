package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// socket describes a client socket down to its options.
type socket struct {
	mapped   bool // an AF_INET6 socket for an IPv4 destination
	protocol int  // unix.IPPROTO_MPTCP, or 0
	fastOpen bool // sendto(MSG_FASTOPEN) in place of connect(2)
	nonblock bool
	setup    func(fd int) error
}

// connect connects to dst in the pod, and reads the answer. local and peer are what the client's socket says of itself.
func (p *testPod) connect(s socket, dst netip.AddrPort) (a answer, local, peer netip.AddrPort, err error) {
	err = p.try(func() error {
		fd, err := s.open(dst)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := s.start(fd, dst); err != nil {
			return err
		}
		local, peer = names(fd)
		a, err = readAnswer(fd)
		return err
	})
	return a, local, peer, err
}

// dial is connect with a plain socket, for callers that want the answer only.
func (p *testPod) dial(dst netip.AddrPort) (answer, error) {
	a, _, _, err := p.connect(socket{}, dst)
	return a, err
}

func (s socket) open(dst netip.AddrPort) (int, error) {
	family := unix.AF_INET
	if dst.Addr().Is6() || s.mapped {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, s.protocol)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	tv := unix.NsecToTimeval(testTimeout.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
	if err == nil && s.setup != nil {
		err = s.setup(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (s socket) start(fd int, dst netip.AddrPort) error {
	sa := s.sockaddr(dst)
	switch {
	case s.fastOpen:
		return unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, sa)
	case s.nonblock:
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		err := unix.Connect(fd, sa)
		if err == nil || !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(testTimeout.Milliseconds())); err != nil {
			return err
		}
		if code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
			return errors.Join(err, syscall.Errno(code))
		}
		return unix.SetNonblock(fd, false)
	default:
		return unix.Connect(fd, sa)
	}
}

func (s socket) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() && !s.mapped {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// names are getsockname(2) and getpeername(2), IPv4 unmapped.
func names(fd int) (local, peer netip.AddrPort) {
	if sa, err := unix.Getsockname(fd); err == nil {
		local = fromSockaddr(sa)
	}
	if sa, err := unix.Getpeername(fd); err == nil {
		peer = fromSockaddr(sa)
	}
	return local, peer
}

func fromSockaddr(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func readAnswer(fd int) (answer, error) {
	var b [256]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return answer{}, fmt.Errorf("read answer: %w", err)
	}
	return parseAnswer(string(b[:n]))
}

func rawControl(setup func(fd int) error) func(string, string, syscall.RawConn) error {
	if setup == nil {
		return nil
	}
	return func(_, _ string, rc syscall.RawConn) error {
		var err error
		if cerr := rc.Control(func(fd uintptr) { err = setup(int(fd)) }); cerr != nil {
			return cerr
		}
		return err
	}
}

func control(t *testing.T, l *net.TCPListener, f func(fd int) error) {
	t.Helper()
	rc, err := l.SyscallConn()
	if err == nil {
		err = rawControl(f)("", "", rc)
	}
	if err != nil {
		t.Fatal(err)
	}
}
