package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The address plan. It is the same in every lab: labs are in namespaces of their own and do not meet.
//
//	nodes     10.222.0.N/24      fd42:c0d0::N/64
//	pods      10.223.N.0/24      fd42:c0d1:0:N::/64     (gateway .1)
//	services  10.224.0.0/16      fd42:c0d2::/64         (never routed: only the mesh serves them)
var (
	nodeNet4 = netip.MustParsePrefix("10.222.0.0/24")
	nodeNet6 = netip.MustParsePrefix("fd42:c0d0::/64")
)

func nodeAddrs(n int) (v4, v6 netip.Prefix) {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 222, 0, byte(n)}), nodeNet4.Bits()),
		netip.MustParsePrefix(fmt.Sprintf("fd42:c0d0::%x/%d", n, nodeNet6.Bits()))
}

func podSubnets(n int) (v4, v6 netip.Prefix) {
	return netip.MustParsePrefix(fmt.Sprintf("10.223.%d.0/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd42:c0d1:0:%x::/64", n))
}

// maxNodes is what the address plan holds.
const maxNodes = 250

// fabric is the switch: a bridge in a namespace of its own, one port per node.
type fabric struct {
	ns *Netns
}

const (
	fabricBridge = "br0"
	uplink       = "eth0" // a node's interface to the switch
)

func newFabric(prefix string) (*fabric, error) {
	ns, err := createNetns(prefix + ".switch")
	if err != nil {
		return nil, err
	}
	err = ns.InNetns(func() error {
		if err := linkUp("lo"); err != nil {
			return err
		}
		// Frames only: the switch has no address and speaks no IPv6 of its own.
		if err := sysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fabricBridge
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		return linkUp(fabricBridge)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make switch: %w", err), ns.remove())
	}
	return &fabric{ns: ns}, nil
}

// connect joins a node's namespace to the switch and gives it addresses.
func (f *fabric) connect(n *Node) error {
	port := fmt.Sprintf("port%d", n.index)
	peer, err := os.Open(n.Path())
	if err != nil {
		return err
	}
	defer peer.Close()
	err = f.ns.InNetns(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = port
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsFd(peer.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s: %w", port, err)
		}
		br, err := netlink.LinkByName(fabricBridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, br); err != nil {
			return fmt.Errorf("add %s to the bridge: %w", port, err)
		}
		return linkUp(port)
	})
	if err != nil {
		return err
	}
	return n.InNetns(func() error { return setupNode(n.index) })
}

// setupNode makes the current namespace a router with the node's addresses.
func setupNode(index int) error {
	for key, value := range map[string]string{
		"net/ipv4/ip_forward":              "1",
		"net/ipv6/conf/all/forwarding":     "1",
		"net/ipv6/conf/default/accept_dad": "0", // or the node's first pod waits 2 s for its gateway's address
	} {
		if err := sysctl(key, value); err != nil {
			return err
		}
	}
	if err := linkUp("lo"); err != nil {
		return err
	}
	v4, v6 := nodeAddrs(index)
	for _, p := range []netip.Prefix{v4, v6} {
		if err := addAddr(uplink, p); err != nil {
			return err
		}
	}
	return linkUp(uplink)
}

// addRoutes routes one node's pod subnets to it, from the current namespace.
func addRoutes(to int) error {
	link, err := netlink.LinkByName(uplink)
	if err != nil {
		return err
	}
	node4, node6 := nodeAddrs(to)
	pods4, pods6 := podSubnets(to)
	for _, r := range []struct{ dst, via netip.Prefix }{{pods4, node4}, {pods6, node6}} {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.dst), Gw: r.via.Addr().AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s via %s: %w", r.dst, r.via.Addr(), err)
		}
	}
	return nil
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// addAddr adds an address that is usable at once (no duplicate address detection).
func addAddr(link string, p netip.Prefix) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, link, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctl writes below /proc/sys of the current thread's namespace.
func sysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}
