package kubelet

import (
	"net/netip"

	"conduit.io/conduit/agent/proctcp"
)

// listener is a listening TCP socket of the node.
type listener struct {
	addr  netip.AddrPort
	inode uint64 // the socket's; the kernel counts them up
}

// dial is an address at which the listener is reached from the node itself.
func (l listener) dial() netip.AddrPort {
	switch {
	case !l.addr.Addr().IsUnspecified():
		return l.addr
	case l.addr.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), l.addr.Port())
	default:
		return netip.AddrPortFrom(netip.IPv6Loopback(), l.addr.Port())
	}
}

// listeners are the sockets that listen on a port, in this network namespace. Those of a busy node's connections are not read.
func listeners(port uint16) ([]listener, error) {
	var all []listener
	err := proctcp.Each(listening(port, &all))
	return all, err
}

// listening has the listeners on a port collected, and ends the list where they end.
func listening(port uint16, into *[]listener) func(proctcp.Socket) bool {
	return func(s proctcp.Socket) bool {
		if s.State == proctcp.Listens && s.Local.Port() == port {
			*into = append(*into, listener{s.Local, s.Inode})
		}
		return s.State == proctcp.Listens
	}
}
