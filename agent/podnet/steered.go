package podnet

import (
	"fmt"
	"net/netip"

	"conduit.io/conduit/agent/proctcp"
	"conduit.io/conduit/loader"

	"github.com/vishvananda/netlink"
)

// Steered reports whether connections of netns are open that were turned round, to whichever proxy. Their ends at the proxy are in netns
// too, and have an address that the pod dialled, and does not have itself. These connections need the rules and routes of Setup.
func Steered(netns *Netns) (bool, error) {
	found := false
	err := loader.Inside(netns.File, func() error {
		list, err := netns.route.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		own := map[netip.Addr]bool{}
		for _, a := range list {
			ip, _ := netip.AddrFromSlice(a.IP)
			own[ip.Unmap()] = true
		}
		return proctcp.Each(func(s proctcp.Socket) bool {
			switch s.State {
			case proctcp.Listens, proctcp.Begins, proctcp.TimeWait, proctcp.Closed:
				return true
			case proctcp.FinWait2: // of one that is closed the pod has everything
				if s.Inode == 0 {
					return true
				}
			}
			a := s.Local.Addr().Unmap()
			found = found || !own[a] && !a.IsLoopback()
			return !found
		})
	})
	if err != nil {
		return false, fmt.Errorf("look for steered connections: %w", err)
	}
	return found, nil
}
