package podnet

import (
	"fmt"
	"net/netip"
	"os"
	"slices"

	"conduit.io/conduit/loader"

	"github.com/vishvananda/netlink"
)

// Holds makes sure that the interface ifname of netns has all of addrs.
func Holds(netns *os.File, ifname string, addrs []netip.Addr) error {
	err := loader.Inside(netns, func() error {
		dev, err := netlink.LinkByName(ifname)
		if err != nil {
			return fmt.Errorf("find the interface %s: %w", ifname, err)
		}
		list, err := netlink.AddrList(dev, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		var there []netip.Addr
		for _, a := range list {
			ip, _ := netip.AddrFromSlice(a.IP)
			there = append(there, ip.Unmap())
		}
		for _, a := range addrs {
			if !slices.Contains(there, a) {
				return fmt.Errorf("%s does not have the address %s, but %v", ifname, a, there)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for the pod's addresses: %w", err)
	}
	return nil
}
