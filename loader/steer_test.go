package loader

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOutboundIsSteered(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	a.enrol(false, false)
	b.serve(":8080", "app", nil)
	ext4 := netip.MustParseAddrPort("198.51.100.7:443") // no route leads there: only the proxy can answer
	ext6 := netip.MustParseAddrPort("[2001:db8:ffff::7]:443")
	dst4, dst6 := netip.AddrPortFrom(b.v4, 8080), netip.AddrPortFrom(b.v6, 8080)
	for _, c := range []struct {
		name string
		s    socket
		dst  netip.AddrPort
		who  string
	}{
		{"v4", socket{}, dst4, "out-v4"},
		{"v6", socket{}, dst6, "out-v6"},
		{"v4 off link", socket{}, ext4, "out-v4"},
		{"v6 off link", socket{}, ext6, "out-v6"},
		{"v4-mapped", socket{mapped: true}, dst4, "out-v4"},
		{"non-blocking v4", socket{nonblock: true}, dst4, "out-v4"},
		{"non-blocking v6", socket{nonblock: true}, dst6, "out-v6"},
		{"MPTCP v4", socket{protocol: unix.IPPROTO_MPTCP}, dst4, "out-v4"},
		{"MPTCP v6", socket{protocol: unix.IPPROTO_MPTCP}, dst6, "out-v6"},
		{"fast open v4", socket{fastOpen: true}, dst4, "out-v4"},
		{"fast open v6", socket{fastOpen: true}, dst6, "out-v6"},
		{"fast open on connect", socket{setup: fastOpenConnect}, dst4, "out-v4"},
		{"bound to device v4", socket{setup: bindToDevice}, dst4, "out-v4"},
		{"bound to device v6", socket{setup: bindToDevice}, dst6, "out-v6"},
		{"own mark", socket{setup: mark(0x111)}, dst4, "out-v4"},
		{"bound to pod address v4", socket{setup: bindTo(a.v4)}, dst4, "out-v4"},
		{"bound to pod address v6", socket{setup: bindTo(a.v6)}, dst6, "out-v6"},
		{"bound to loopback", socket{setup: bindTo(netip.MustParseAddr("127.0.0.1"))}, dst4, "out-v4"},
		{"proxy's own port elsewhere", socket{}, netip.AddrPortFrom(b.v4, 15001), "out-v4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := a.counters()
			got, local, peer, err := a.connect(c.s, c.dst)
			if err != nil {
				t.Fatal(err)
			}
			if want := (answer{c.who, c.dst, local}); got != want {
				t.Errorf("accepted as %v, want %v", got, want)
			}
			if peer != c.dst {
				t.Errorf("the client's peer is %v, want %v", peer, c.dst)
			}
			if diff := countersDiff(before, a.counters()); diff != "created=1 steered=1" {
				t.Errorf("counted %q", diff)
			}
		})
	}
}

func TestLocalDestinationsPass(t *testing.T) {
	d := open(t)
	a, _ := newPods(t, d)
	a.enrol(false, false)
	a.serve(":8080", "app", nil)
	for _, dst := range []string{
		"127.0.0.1:8080", "127.9.9.9:8080", "0.0.0.0:8080", "[::1]:8080", "[::]:8080",
		fmt.Sprintf("%v:8080", a.v4), fmt.Sprintf("[%v]:8080", a.v6),
	} {
		t.Run(dst, func(t *testing.T) {
			for _, s := range []socket{{}, {mapped: true}} {
				before := a.counters()
				got, _, _, err := a.connect(s, netip.MustParseAddrPort(dst))
				if err != nil || got.who != "app" {
					t.Errorf("%+v: answered by %q, %v", s, got.who, err)
				}
				if diff := countersDiff(before, a.counters()); diff != "created=1 local=1" {
					t.Errorf("%+v: counted %q", s, diff)
				}
			}
		})
	}
	t.Run("link-local", func(t *testing.T) {
		before := a.counters()
		if _, err := a.dial(netip.MustParseAddrPort("169.254.169.254:80")); err == nil {
			t.Error("answered")
		}
		if diff := countersDiff(before, a.counters()); diff != "created=1 local=1" {
			t.Errorf("counted %q", diff)
		}
	})
}

func TestInboundIsSteered(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	b.enrol(false, false)
	b.serve(":8080", "app", nil)
	for who, addr := range map[string]netip.Addr{"in-v4": b.v4, "in-v6": b.v6} {
		for _, port := range []uint16{8080, 15008, 9} { // one the application has, the mesh port, one nobody has
			dst := netip.AddrPortFrom(addr, port)
			got, local, _, err := a.connect(socket{}, dst)
			if want := (answer{who, dst, local}); err != nil || got != want {
				t.Errorf("%v: accepted as %v, %v; want %v", dst, got, err, want)
			}
		}
	}
	if c := b.counters(); c.Steered != 0 || c.Bypassed["inbound-down-open"] != 0 {
		t.Errorf("counters: %+v", c)
	}
}

// A pod's new neighbours, and the pod itself, are not disturbed by programs that know nothing of them.
func TestOthersAreLeftAlone(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	b.serve(":8080", "app", nil)
	for _, attached := range []bool{false, true} {
		if attached {
			if err := d.AttachLookup(b.ns, b.cookie); err != nil {
				t.Fatal(err)
			}
		}
		for _, addr := range []netip.Addr{b.v4, b.v6} {
			dst := netip.AddrPortFrom(addr, 8080)
			got, local, _, err := a.connect(socket{}, dst)
			if want := (answer{"app", dst, local}); err != nil || got != want {
				t.Errorf("lookup attached %v: accepted as %v, %v; want %v", attached, got, err, want)
			}
		}
	}
	if all, err := d.Counters(); err != nil || len(all) != 0 {
		t.Errorf("counters of pods that were never enrolled: %v, %v", all, err)
	}
}

func bindToDevice(fd int) error { return unix.BindToDevice(fd, "eth0") }

func fastOpenConnect(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
}

func mark(m int) func(int) error {
	return func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, m) }
}

func bindTo(a netip.Addr) func(int) error {
	return func(fd int) error { return unix.Bind(fd, socket{}.sockaddr(netip.AddrPortFrom(a, 0))) }
}

// countersDiff says what was counted between two readings.
func countersDiff(before, after Counters) string {
	s := fmt.Sprintf("created=%d", after.Created-before.Created)
	if n := after.Steered - before.Steered; n != 0 {
		s += fmt.Sprintf(" steered=%d", n)
	}
	for _, reason := range sortedKeys(after.Bypassed) {
		if n := after.Bypassed[reason] - before.Bypassed[reason]; n != 0 {
			s += fmt.Sprintf(" %s=%d", reason, n)
		}
	}
	return s
}
