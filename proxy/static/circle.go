package static

import (
	"fmt"
	"net"
	"net/netip"
)

// circles refuses listeners whose connections would come back to them for ever.
func (d *decoder) circles(all []Listener) {
	for i := range all {
		first := serving(all, all[i].Upstream)
		at := first
		for n := 0; n < len(all) && at >= 0 && at != i; n++ {
			at = serving(all, all[at].Upstream)
		}
		if at == i {
			d.fail(fmt.Sprintf("listeners[%d].upstream", i),
				"%s is where listeners[%d] listens itself, and connections would go round for ever; give the server's address", all[i].Upstream, first)
		}
	}
}

// serving is the index of the listener that a connection to a would come to; -1: none.
func serving(all []Listener, a netip.AddrPort) int {
	for i := range all {
		if reaches(a, all[i].Address) {
			return i
		}
	}
	return -1
}

// reaches reports whether a connection to the address to arrives at what listens at on.
func reaches(to, on netip.AddrPort) bool {
	if to.Port() != on.Port() {
		return false
	}
	a, b := to.Addr().Unmap(), on.Addr().Unmap()
	switch a { // as the kernel has it
	case netip.IPv4Unspecified():
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case netip.IPv6Unspecified():
		a = netip.IPv6Loopback()
	}
	if !b.IsUnspecified() {
		return a == b
	}
	return (b.Is6() || a.Is4()) && local(a)
}

// local reports whether a is an address of this machine.
func local(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	all, _ := net.InterfaceAddrs() // without, what is certain is enough
	for _, n := range all {
		if p, err := netip.ParsePrefix(n.String()); err == nil && p.Addr() == a {
			return true
		}
	}
	return false
}
