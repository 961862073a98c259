package inpod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is socket(2) in the pod. The caller closes it.
func (p *Pod) Socket(family, kind, proto int) (fd int, err error) {
	fd, err = p.hand.socket(family, kind, proto)
	if err != nil {
		return fd, fmt.Errorf("pod %s: %w", p, err)
	}
	return fd, nil
}

// Listen is net.Listen in the pod, for TCP at literal addresses. "tcp" at an unspecified address is both families.
func (p *Pod) Listen(_ context.Context, network, address string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", p, err)
	}
	if at.Port() == 0 {
		select {
		case port := <-p.ports:
			at = netip.AddrPortFrom(at.Addr(), port)
		default:
			if cap(p.ports) > 0 {
				return nil, fmt.Errorf("listen in %s: all %d ports were used", p, cap(p.ports))
			}
		}
	}
	fd, err := p.Socket(familyOf(at.Addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	options := map[[2]int]int{{unix.SOL_SOCKET, unix.SO_REUSEADDR}: 1}
	if at.Addr().Is6() {
		options[[2]int{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}] = map[string]int{"tcp6": 1}[network]
	}
	for o, value := range options {
		if err := unix.SetsockoptInt(fd, o[0], o[1], value); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return nil, fmt.Errorf("listen in %s at %s: %w", p, at, os.NewSyscallError("bind", err))
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return net.FileListener(f)
}

// DialContext is net.Dialer.DialContext in the pod, for TCP to literal addresses.
func (p *Pod) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := p.dial(ctx, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial from " + p.String(), Net: network, Err: err}
	}
	return c, nil
}

func (p *Pod) dial(ctx context.Context, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	fd, err := p.Socket(familyOf(to.Addr()), unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, sockaddr(to))
	f := os.NewFile(uintptr(fd), "connection") // pollable, for it does not block
	defer f.Close()
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, os.NewSyscallError("connect", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := f.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := connected(f); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// connected waits until a connection is made.
func connected(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = syscall.Errno(errno)
		}
		if err != nil {
			failed = os.NewSyscallError("connect", err)
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	return errors.Join(err, failed)
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
