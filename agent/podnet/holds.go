package podnet

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Holds makes sure that the interface ifname of netns has all of addrs.
func Holds(netns *Netns, ifname string, addrs []netip.Addr) error {
	there, err := held(netns, ifname)
	if err != nil {
		return fmt.Errorf("look for the pod's addresses: %w", err)
	}
	for _, a := range addrs {
		if !slices.Contains(there, a) {
			return fmt.Errorf("look for the pod's addresses: %s does not have the address %s, but %v", ifname, a, there)
		}
	}
	return nil
}

func held(netns *Netns, ifname string) (there []netip.Addr, err error) {
	dev, err := netns.link(ifname)
	if err != nil {
		return nil, err
	}
	list, err := netns.route.AddrList(dev, netlink.FAMILY_ALL)
	for _, a := range list {
		ip, _ := netip.AddrFromSlice(a.IP)
		there = append(there, ip.Unmap())
	}
	return there, err
}
