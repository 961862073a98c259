package kube

import (
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"conduit.io/conduit/tests/cluster/machine"
)

// network is the plan of a cluster's addresses.
type network struct{ dual bool }

const (
	bridge = "nodes" // in the control plane's machine
	uplink = "eth0"  // on a node
)

func (n network) list(v4, v6 string) []string {
	if n.dual {
		return []string{v4, v6}
	}
	return []string{v4}
}

func (n network) controlPlane() string { return "172.30.0.1" }
func (n network) services() string     { return strings.Join(n.list("10.96.0.0/16", "fd00:96::/112"), ",") }
func (n network) pods() string         { return strings.Join(n.list("10.244.0.0/16", "fd00:244::/48"), ",") }
func (n network) dns() string          { return "10.96.0.10" }
func (n network) apiAddrs() []string   { return append(n.list("172.30.0.1", "fd00:30::1"), "10.96.0.1") }
func (n network) node(i int) []string {
	return n.list(fmt.Sprintf("172.30.0.%d", 10+i), fmt.Sprintf("fd00:30::%d", 10+i))
}
func (n network) podNet(i int) []string {
	return n.list(fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:244:0:%x::/64", i))
}
func (n network) anywhere() []string { return n.list("0.0.0.0/0", "::/0") }
func (n network) gateway() []string  { return n.list("172.30.0.1", "fd00:30::1") }
func prefixLen(address string) string {
	return map[bool]string{false: "/24", true: "/64"}[strings.Contains(address, ":")]
}

// maxNodes is bounded by the plan of addresses.
const maxNodes = 200

// routerSysctls are those of a machine that passes packets on.
func routerSysctls() map[string]string {
	s := map[string]string{"net/ipv4/ip_forward": "1"}
	for name, value := range map[string]string{
		"net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/default/accept_dad": "0", // the kernel may lack IPv6
		"net/bridge/bridge-nf-call-iptables": "1", "net/bridge/bridge-nf-call-ip6tables": "1", // and br_netfilter
	} {
		if _, err := os.Stat("/proc/sys/" + name); err == nil {
			s[name] = value
		}
	}
	return s
}

// inside gives fn a netlink handle in a machine's network namespace.
func inside(m *machine.Machine, fn func(*netlink.Handle, netns.NsHandle) error) error {
	ns, err := netns.GetFromPath(m.NetNS())
	if err != nil {
		return fmt.Errorf("open network of %s: %w", m.Name(), err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("open netlink of %s: %w", m.Name(), err)
	}
	defer h.Close()
	return fn(h, ns)
}

// makeBridge makes what all nodes are plugged into. The control plane is their router.
func (c *Cluster) makeBridge() error {
	return inside(c.cp, func(h *netlink.Handle, _ netns.NsHandle) error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
		if err := h.LinkAdd(br); err != nil {
			return fmt.Errorf("make bridge: %w", err)
		}
		return configure(h, bridge, c.net.gateway())
	})
}

// plug connects a node with the bridge, and makes the routes to its pods on all machines that are there already, and
// on it those to theirs.
func (c *Cluster) plug(i int, m *machine.Machine) error {
	port := fmt.Sprintf("node%d", i)
	err := inside(m, func(node *netlink.Handle, ns netns.NsHandle) error {
		return inside(c.cp, func(cp *netlink.Handle, _ netns.NsHandle) error {
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: uplink, PeerNamespace: netlink.NsFd(ns)}
			if err := cp.LinkAdd(veth); err != nil {
				return fmt.Errorf("plug in node %d: %w", i, err)
			}
			br, err := cp.LinkByName(bridge)
			if err != nil {
				return err
			}
			if err := cp.LinkSetMaster(veth, br); err != nil {
				return fmt.Errorf("plug in node %d: %w", i, err)
			}
			if err := configure(cp, port, nil); err != nil {
				return err
			}
			if err := configure(node, uplink, c.net.node(i)); err != nil {
				return err
			}
			if err := route(node, uplink, c.net.anywhere(), c.net.gateway()); err != nil {
				return err
			}
			return route(cp, bridge, c.net.podNet(i), c.net.node(i))
		})
	})
	if err != nil {
		return err
	}
	for j, other := range c.nodes {
		if j == i {
			continue
		}
		if err := c.routeBetween(i, m, j, other); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) routeBetween(i int, a *machine.Machine, j int, b *machine.Machine) error {
	err := inside(a, func(h *netlink.Handle, _ netns.NsHandle) error {
		return route(h, uplink, c.net.podNet(j), c.net.node(j))
	})
	if err != nil {
		return err
	}
	return inside(b, func(h *netlink.Handle, _ netns.NsHandle) error {
		return route(h, uplink, c.net.podNet(i), c.net.node(i))
	})
}

func configure(h *netlink.Handle, name string, addrs []string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a + prefixLen(a))
		if err != nil {
			return err
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	return nil
}

// route adds a route to each of the networks, by the gateway at the same place of the list.
func route(h *netlink.Handle, name string, networks, gateways []string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for k, dst := range networks {
		_, ipnet, err := net.ParseCIDR(dst)
		if err != nil {
			return err
		}
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipnet, Gw: net.ParseIP(gateways[k])}
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("route %s by %s: %w", dst, gateways[k], err)
		}
	}
	return nil
}
