package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/loader"

	"golang.org/x/sys/unix"
)

// The ports of the listeners. Nobody dials them: connections reach the listeners through the kernel program, which
// names the socket. They help to recognise them in ss(8).
const (
	portOut = 15001
	portIn  = 15006

	backlog = 4096
)

// Listeners are a pod's four listening sockets, indexed by node.Slot. Where the namespace has no IPv6, the slot is
// /dev/null, and Present is false.
type Listeners struct {
	Files   [node.Slots]*os.File
	Present [node.Slots]bool
}

// Close closes the files; the sockets live on where they were sent.
func (l *Listeners) Close() {
	for _, f := range l.Files {
		if f != nil {
			f.Close()
		}
	}
}

// Listen makes the four listeners in netns. The caller must Close them.
func Listen(netns *Netns) (*Listeners, error) {
	l := &Listeners{}
	err := loader.Inside(netns.File, func() error {
		for slot := range node.Slots {
			f, err := listen(slot)
			switch {
			case err == nil:
				l.Files[slot], l.Present[slot] = f, true
			case isV6(slot) && noFamily(err):
				if l.Files[slot], err = os.Open(os.DevNull); err != nil {
					return err
				}
			default:
				return err
			}
		}
		return nil
	})
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("listen in the pod: %w", err)
	}
	return l, nil
}

func isV6(s node.Slot) bool { return s == node.InV6 || s == node.OutV6 }

// noFamily tells that IPv6 is not compiled in, or is disabled in the namespace.
func noFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}

func listen(slot node.Slot) (*os.File, error) {
	domain, level, transparent := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if isV6(slot) {
		domain, level, transparent = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		addr = netip.IPv6Loopback()
	}
	port := portIn
	if slot == node.OutV4 || slot == node.OutV6 {
		port = portOut
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	set := func(level, opt int) {
		if err == nil {
			err = unix.SetsockoptInt(fd, level, opt, 1)
		}
	}
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR)
	set(unix.SOL_SOCKET, unix.SO_REUSEPORT) // new listeners beside those that they replace
	set(level, transparent)                 // without it, replies from foreign addresses are not routed
	if domain == unix.AF_INET6 {
		set(unix.SOL_IPV6, unix.IPV6_V6ONLY)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr, uint16(port))))
		if errors.Is(err, unix.EADDRINUSE) { // the application has the port; any other does as well
			err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr, 0)))
		}
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen on %s: %w", netip.AddrPortFrom(addr, uint16(port)), err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("listener-%d", slot)), nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
