package podnet

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"conduit.io/conduit/api/kernel"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// Table is the routing table of the local routes in pods' namespaces.
	Table = 100

	prefLookup = 100
	prefRefuse = 101
	bindMetric = 10 // of the route for sockets that are bound to the interface
)

// Net is what a pod's namespace needs to turn marked packets round.
type Net struct {
	IfName string       // the pod's interface
	Addrs  []netip.Addr // the pod's addresses; the first of each family becomes the source
}

// family is one address family of a Net.
type family struct {
	number int
	src    net.IP // nil when the pod has no address of the family
	any    *net.IPNet
}

// families are both address families: the rules are needed also where the pod has no address yet. Router advertisements
// bring one at any time, and until the agent has seen it, a marked packet must find nothing but a refusal.
func (n Net) families() []family {
	var out []family
	for _, f := range []struct {
		number int
		any    string
		is     func(netip.Addr) bool
	}{
		{netlink.FAMILY_V4, "0.0.0.0/0", netip.Addr.Is4},
		{netlink.FAMILY_V6, "::/0", netip.Addr.Is6},
	} {
		_, dst, _ := net.ParseCIDR(f.any)
		fam := family{number: f.number, any: dst}
		if i := slices.IndexFunc(n.Addrs, f.is); i >= 0 {
			fam.src = n.Addrs[i].AsSlice()
		}
		out = append(out, fam)
	}
	return out
}

// Addresses are the global addresses in netns, those of ifname first: CNI's result first names them, but a pod may
// have got more (several interfaces, router advertisements).
func Addresses(netns *Netns, ifname string) (out []netip.Addr, err error) {
	dev, err := netns.link(ifname)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	list, err := netns.route.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	slices.SortStableFunc(list, func(a, b netlink.Addr) int {
		own := dev.Attrs().Index
		return cmp.Or(first(a.LinkIndex == own)-first(b.LinkIndex == own), a.LinkIndex-b.LinkIndex)
	})
	for _, a := range list {
		ip, _ := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); ip.IsGlobalUnicast() && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out, nil
}

func first(yes bool) int {
	if yes {
		return 0
	}
	return 1
}

// Setup makes what is missing in netns, and corrects what differs. It fails while a source address is tentative: see
// Settle.
func Setup(netns *Netns, n Net) error {
	if err := netns.setUp(n); err != nil {
		return fmt.Errorf("set up pod network: %w", err)
	}
	return nil
}

func (ns *Netns) setUp(n Net) error {
	lo, dev, err := ns.links(n.IfName)
	if err != nil {
		return err
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		if err := ns.route.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
	}
	for _, f := range n.families() {
		for _, r := range routes(f, lo, dev) {
			if err := ns.route.RouteReplace(r); err != nil {
				return fmt.Errorf("add %s: %w", routeText(r), err)
			}
		}
		if err := ns.addRules(f); err != nil {
			return err
		}
	}
	return nil
}

func (ns *Netns) addRules(f family) error {
	missing, err := ns.missingRules(f)
	for _, r := range missing {
		if err := ns.route.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add rule %d: %w", r.Priority, err)
		}
	}
	return err
}

// missingRules are those that Setup would have to add: none in a kernel that does not know a family which the pod does
// not use.
func (ns *Netns) missingRules(f family) (missing []*netlink.Rule, err error) {
	have, err := ns.route.RuleList(f.number)
	switch {
	case err != nil && f.src == nil && unsupported(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list rules: %w", err)
	}
	for _, r := range rules(f) {
		if !slices.ContainsFunc(have, func(h netlink.Rule) bool { return sameRule(&h, r) }) {
			missing = append(missing, r)
		}
	}
	return missing, nil
}

func (ns *Netns) link(name string) (netlink.Link, error) {
	l, err := ns.route.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find the interface %s: %w", name, err)
	}
	return l, nil
}

func (ns *Netns) links(ifname string) (lo, dev netlink.Link, err error) {
	if lo, err = ns.link("lo"); err == nil {
		dev, err = ns.link(ifname)
	}
	return lo, dev, err
}

// routes are the two routes of a family of which the pod has an address. The source is set in them, for the kernel would otherwise take the
// destination of a local route as the source. The second serves sockets that are bound to the interface.
func routes(f family, lo, dev netlink.Link) []*netlink.Route {
	if f.src == nil {
		return nil
	}
	out := []*netlink.Route{
		{LinkIndex: lo.Attrs().Index, Dst: f.any, Src: f.src, Table: Table, Type: unix.RTN_LOCAL, Family: f.number},
		{LinkIndex: dev.Attrs().Index, Dst: f.any, Src: f.src, Table: Table, Type: unix.RTN_LOCAL, Family: f.number, Priority: bindMetric},
	}
	if f.number == netlink.FAMILY_V4 {
		out[0].Scope, out[1].Scope = unix.RT_SCOPE_HOST, unix.RT_SCOPE_HOST
	}
	return out
}

// rules are the two rules of a family. Marked and not routable never goes out in the clear; a pod without an address of
// the family is told what it would be told without rules, ENETUNREACH, so that it tries the other family.
func rules(f family) []*netlink.Rule {
	mask := uint32(0xffffffff)
	lookup, refuse := netlink.NewRule(), netlink.NewRule()
	lookup.Priority, lookup.Table = prefLookup, Table
	refuse.Priority, refuse.Type = prefRefuse, unix.RTN_PROHIBIT
	if f.src == nil {
		refuse.Type = unix.RTN_UNREACHABLE
	}
	for _, r := range []*netlink.Rule{lookup, refuse} {
		r.Family, r.Mark, r.Mask = f.number, kernel.Mark, &mask
	}
	return []*netlink.Rule{lookup, refuse}
}

// sameRule compares what the netlink package reads back. It does not read the action: a rule without a table is one
// that refuses.
func sameRule(have, want *netlink.Rule) bool {
	return have.Priority == want.Priority && have.Mark == kernel.Mark && have.Table == max(want.Table, 0)
}

func routeText(r *netlink.Route) string {
	return fmt.Sprintf("local route to %s by interface %d, source %s, table %d", r.Dst, r.LinkIndex, r.Src, r.Table)
}

// Verify reports the first thing that Setup would have to change, or nil.
func Verify(netns *Netns, n Net) error {
	lo, dev, err := netns.links(n.IfName)
	if err != nil {
		return err
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		return errors.New("lo is down")
	}
	for _, f := range n.families() {
		missing, err := netns.missingRules(f)
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			return fmt.Errorf("rule %d for mark %#x is missing (IPv%d)", missing[0].Priority, kernel.Mark, ipVersion(f))
		}
		if f.src == nil {
			continue
		}
		present, err := netns.tableRoutes(f.number)
		if err != nil {
			return err
		}
		for _, r := range routes(f, lo, dev) {
			if !slices.ContainsFunc(present, func(h netlink.Route) bool {
				return h.LinkIndex == r.LinkIndex && h.Type == unix.RTN_LOCAL && h.Src.Equal(r.Src) && isDefault(h.Dst)
			}) {
				return fmt.Errorf("%s is missing", routeText(r))
			}
		}
	}
	return nil
}

func ipVersion(f family) int {
	if f.number == netlink.FAMILY_V6 {
		return 6
	}
	return 4
}

func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}

func (ns *Netns) tableRoutes(number int) ([]netlink.Route, error) {
	// Type and table both: without a table the kernel's main one would be listed.
	list, err := ns.route.RouteListFiltered(number, &netlink.Route{Table: Table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes of table %d: %w", Table, err)
	}
	return list, nil
}

// Teardown removes the rules and the local routes of both families, whatever addresses they were made for. What is
// not there is no error.
func Teardown(netns *Netns) error {
	var errs []error
	for _, number := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		errs = append(errs, netns.teardown(number))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove pod network: %w", err)
	}
	return nil
}

func (ns *Netns) teardown(number int) error {
	have, err := ns.route.RuleList(number)
	if err != nil {
		if unsupported(err) {
			return nil
		}
		return fmt.Errorf("list rules: %w", err)
	}
	var errs []error
	for i := range have {
		r := &have[i]
		if !ownRule(r) {
			continue
		}
		r.Family = number
		if err := ns.route.RuleDel(r); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("delete rule %d: %w", r.Priority, err))
		}
	}
	present, err := ns.tableRoutes(number)
	if err != nil && !unsupported(err) {
		errs = append(errs, err)
	}
	for i := range present {
		r := &present[i]
		if !ownRoute(r) {
			continue
		}
		if err := ns.route.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete %s: %w", strings.TrimSpace(r.String()), err))
		}
	}
	return errors.Join(errs...)
}

func ownRule(r *netlink.Rule) bool {
	return r.Mark == kernel.Mark && (r.Priority == prefLookup || r.Priority == prefRefuse)
}

// ownRoute tells Setup's routes from those that somebody else may have in the table.
func ownRoute(r *netlink.Route) bool { return r.Type == unix.RTN_LOCAL && isDefault(r.Dst) }

// unsupported tells a kernel without the address family.
func unsupported(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// Leftovers counts the rules and routes that Setup makes and that are there.
func Leftovers(netns *Netns) (n int, err error) {
	for _, number := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := netns.route.RuleList(number)
		if err != nil && !unsupported(err) {
			return 0, err
		}
		for i := range have {
			if ownRule(&have[i]) {
				n++
			}
		}
		routes, err := netns.tableRoutes(number)
		if err != nil && !unsupported(err) {
			return 0, err
		}
		for i := range routes {
			if ownRoute(&routes[i]) {
				n++
			}
		}
	}
	return n, nil
}
