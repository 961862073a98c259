package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/loader"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newNetns makes an unnamed network namespace with an eth0 that has addrs. It lives while the file is open.
func newNetns(t *testing.T, addrs ...string) *Netns {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root to make network namespaces")
	}
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{err: err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		done <- result{f, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.f.Close() })
	err := loader.Inside(r.f, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"}); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		peer, err := netlink.LinkByName("peer0")
		if err != nil {
			return err
		}
		for _, l := range []netlink.Link{l, peer} {
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, addr); err != nil { // IPv6 ones are tentative for a while
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n, err := Open(path(r.f))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func path(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

var dual = []string{"10.9.0.2/24", "10.9.0.3/24", "fd00:9::2/64"}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func ruleText(t *testing.T, ns *Netns, family int) (out []string) {
	t.Helper()
	if err := loader.Inside(ns.File, func() error {
		list, err := netlink.RuleList(family)
		for _, r := range list {
			if r.Priority >= 100 && r.Priority < 200 {
				out = append(out, fmt.Sprintf("%d mark %#x table %d", r.Priority, r.Mark, r.Table))
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func routeCount(t *testing.T, ns *Netns, family int) (n int) {
	t.Helper()
	if err := loader.Inside(ns.File, func() error {
		list, err := ns.tableRoutes(family)
		n = len(list)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSetupVerifyTeardown(t *testing.T) {
	ns := newNetns(t, dual...)
	n := Net{IfName: "eth0", Addrs: addrs("10.9.0.2", "10.9.0.3", "fd00:9::2")}
	if err := Verify(ns, n); err == nil {
		t.Fatal("Verify finds nothing missing in a fresh namespace")
	}
	if err := Settle(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing changes
		if err := Setup(ns, n); err != nil {
			t.Fatal(err)
		}
		if err := Verify(ns, n); err != nil {
			t.Fatalf("Verify after Setup: %v", err)
		}
		for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			want := []string{"100 mark 0x4d1 table 100", "101 mark 0x4d1 table 0"}
			if d := cmp.Diff(want, ruleText(t, ns, f)); d != "" {
				t.Errorf("rules (-want +got):\n%s", d)
			}
			if got := routeCount(t, ns, f); got != 2 {
				t.Errorf("family %d: %d routes in table %d, want 2", f, got, Table)
			}
		}
	}
	checkSources(t, ns)
	for range 2 {
		if err := Teardown(ns); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if r, n := ruleText(t, ns, f), routeCount(t, ns, f); len(r) != 0 || n != 0 {
			t.Errorf("left after Teardown: rules %v, %d routes", r, n)
		}
	}
}

// checkSources asks the kernel how marked packets would go: to loopback, from the pod's own address.
func checkSources(t *testing.T, ns *Netns) {
	t.Helper()
	for dst, src := range map[string]string{"192.0.2.1": "10.9.0.2", "2001:db8::1": "fd00:9::2"} {
		err := loader.Inside(ns.File, func() error {
			got, err := netlink.RouteGetWithOptions(netip.MustParseAddr(dst).AsSlice(), &netlink.RouteGetOptions{Mark: kernel.Mark})
			if err != nil {
				return err
			}
			if len(got) != 1 || got[0].Type != unix.RTN_LOCAL || got[0].Src.String() != src {
				return fmt.Errorf("marked packet to %s goes %v, want local from %s", dst, got, src)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestVerifyNamesWhatIsMissing(t *testing.T) {
	n := Net{IfName: "eth0", Addrs: addrs("10.9.0.2", "fd00:9::2")}
	tests := []struct {
		name  string
		spoil func() error
		says  string
	}{
		{"rule", func() error {
			list, err := netlink.RuleList(netlink.FAMILY_V6)
			for i := range list {
				if list[i].Priority == prefRefuse {
					list[i].Family = netlink.FAMILY_V6
					return netlink.RuleDel(&list[i])
				}
			}
			return err
		}, "rule 101 for mark 0x4d1 is missing (IPv6)"},
		{"route", func() error {
			list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: Table}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			return netlink.RouteDel(&list[0])
		}, "source 10.9.0.2, table 100 is missing"},
		{"lo", func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(lo)
		}, "lo is down"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns := newNetns(t, dual...)
			if err := Settle(t.Context(), ns); err != nil {
				t.Fatal(err)
			}
			if err := Setup(ns, n); err != nil {
				t.Fatal(err)
			}
			if err := loader.Inside(ns.File, tt.spoil); err != nil {
				t.Fatal(err)
			}
			if err := Verify(ns, n); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("Verify: %v, want %q", err, tt.says)
			}
			if err := Setup(ns, n); err != nil {
				t.Fatal(err)
			}
			if err := Verify(ns, n); err != nil {
				t.Errorf("Setup did not repair it: %v", err)
			}
		})
	}
}

// A pod without an IPv6 address has the rules for it all the same: what was marked before the agent has seen an address
// that a router advertised is refused, and foreign routes of the table are left alone and not counted.
func TestRulesBeforeAddresses(t *testing.T) {
	ns := newNetns(t, "10.9.0.2/24")
	n := Net{IfName: "eth0", Addrs: addrs("10.9.0.2")}
	if err := Setup(ns, n); err != nil {
		t.Fatal(err)
	}
	if err := Verify(ns, n); err != nil {
		t.Fatal(err)
	}
	way := func() error {
		return loader.Inside(ns.File, func() error {
			_, err := netlink.RouteGetWithOptions(netip.MustParseAddr("2001:db8::1").AsSlice(), &netlink.RouteGetOptions{Mark: kernel.Mark})
			return err
		})
	}
	if err := way(); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("marked packet of a pod without IPv6: %v, want ENETUNREACH", err)
	}
	if err := loader.Inside(ns.File, func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, _ := netlink.ParseAddr("2001:db8:9::2/64")
		addr.Flags = unix.IFA_F_NODAD
		_, any, _ := net.ParseCIDR("::/0")
		_, foreign, _ := net.ParseCIDR("2001:db8:77::/48")
		return errors.Join(netlink.AddrAdd(dev, addr),
			netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: any, Gw: net.ParseIP("2001:db8:9::1")}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: foreign, Table: Table}))
	}); err != nil {
		t.Fatal(err)
	}
	if err := way(); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("marked packet after a router advertisement: %v, want ENETUNREACH", err)
	}
	if err := Teardown(ns); err != nil {
		t.Fatal(err)
	}
	if left, err := Leftovers(ns); err != nil || left != 0 {
		t.Errorf("left over: %d, %v; want none, for the route in the table is somebody else's", left, err)
	}
	if err := way(); err != nil {
		t.Errorf("after Teardown the packet has no way: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	ns := newNetns(t, dual...)
	got, err := Addresses(ns, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(fmt.Sprint(addrs("10.9.0.2", "10.9.0.3", "fd00:9::2")), fmt.Sprint(got)); d != "" {
		t.Errorf("addresses (-want +got):\n%s", d)
	}
}

func TestListen(t *testing.T) {
	ns := newNetns(t, dual...)
	if err := Setup(ns, Net{IfName: "eth0", Addrs: addrs("10.9.0.2")}); err != nil {
		t.Fatal(err)
	}
	old, err := Listen(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	l, err := Listen(ns) // beside the old ones
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for slot, f := range l.Files {
		if !l.Present[slot] {
			t.Fatalf("slot %d is not there", slot)
		}
		for _, opt := range []int{unix.SO_ACCEPTCONN, unix.SO_REUSEPORT} {
			if v, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, opt); err != nil || v != 1 {
				t.Errorf("slot %d: option %d = %d, %v", slot, opt, v, err)
			}
		}
		level, opt := unix.SOL_IP, unix.IP_TRANSPARENT
		if isV6(node.Slot(slot)) {
			level, opt = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		if v, err := unix.GetsockoptInt(int(f.Fd()), level, opt); err != nil || v != 1 {
			t.Errorf("slot %d is not transparent: %d, %v", slot, v, err)
		}
	}
}

// A namespace with IPv6 switched off gets its IPv4 listeners all the same; the others are sockets or /dev/null, never
// absent, so that every slot has a descriptor to send.
func TestListenWithoutIPv6(t *testing.T) {
	ns := newNetns(t)
	if err := loader.Inside(ns.File, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	}); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !l.Present[node.InV4] || !l.Present[node.OutV4] {
		t.Errorf("present %v, want both IPv4 slots", l.Present)
	}
	for slot, f := range l.Files {
		if f == nil {
			t.Errorf("slot %d has no descriptor", slot)
		}
	}
}

// home is opened before any thread of the test can be elsewhere.
var home, _ = os.Open("/proc/thread-self/ns/net")

func TestOpenRefuses(t *testing.T) {
	ns := newNetns(t)
	if f, err := Open(path(ns.File)); err != nil {
		t.Errorf("a good namespace: %v", err)
	} else {
		f.Close()
	}
	empty := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]error{
		"/nonexistent/ns":    ErrGone,
		empty:                ErrGone,
		"/proc/self/ns/mnt":  ErrNotNetns,
		path(home):           ErrHost,
		"/proc/self/cmdline": ErrNotNetns,
	} {
		if _, err := Open(p); !errors.Is(err, want) {
			t.Errorf("Open(%s): %v, want %v", p, err, want)
		}
	}
}

func TestDoComesHome(t *testing.T) {
	ns := newNetns(t)
	inode := func(p string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	before := inode("/proc/thread-self/ns/net")
	for range 20 {
		var there uint64
		if err := loader.Inside(ns.File, func() error { there = inode("/proc/thread-self/ns/net"); return nil }); err != nil {
			t.Fatal(err)
		}
		if there == before {
			t.Fatal("work did not run inside the namespace")
		}
		if now := inode("/proc/thread-self/ns/net"); now != before {
			t.Fatal("a thread stayed inside the namespace")
		}
	}
}
