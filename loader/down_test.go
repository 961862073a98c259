package loader

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"conduit.io/conduit/api/kernel"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// What happens while no proxy is alive, in both directions, both families, both modes; and that it is over when a proxy
// listens again.
func TestProxyDown(t *testing.T) {
	for _, c := range []struct {
		name    string
		open    bool
		counted string // outbound, per connection
		inbound string // reason counted per inbound connection
	}{
		{"closed", false, "created=1 refused=1", "inbound-refused"},
		{"open", true, "created=1 down-open=1", "inbound-down-open"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t)
			a, b := newPods(t, d)
			a.serve(":8080", "app-a", nil)
			b.serve(":8080", "app-b", nil)
			a.enrol(c.open, c.open)
			if alive, err := d.Listeners(a.cookie); err != nil || alive != [4]bool{true, true, true, true} {
				t.Fatalf("listeners: %v, %v", alive, err)
			}
			a.kill()
			if alive, err := d.Listeners(a.cookie); err != nil || alive != [4]bool{} {
				t.Fatalf("listeners after the proxy's death: %v, %v", alive, err)
			}
			judge := func(who string, got answer, err error) {
				t.Helper()
				if c.open && (err != nil || got.who != who) || !c.open && !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("answered by %q, %v", got.who, err)
				}
			}
			for i, addrs := range [][2]netip.Addr{{a.v4, b.v4}, {a.v6, b.v6}} {
				before := a.counters()
				got, err := a.dial(netip.AddrPortFrom(addrs[1], 8080))
				judge("app-b", got, err)
				if diff := countersDiff(before, a.counters()); diff != c.counted {
					t.Errorf("outbound counted %q, want %q", diff, c.counted)
				}
				got, err = b.dial(netip.AddrPortFrom(addrs[0], 8080))
				judge("app-a", got, err)
				if n := a.counters().Bypassed[c.inbound]; n != uint64(i+1) {
					t.Errorf("%s: %d, want %d", c.inbound, n, i+1)
				}
			}
			if got, err := a.dial(netip.AddrPortFrom(a.v4, 8080)); err != nil || got.who != "app-a" {
				t.Errorf("to itself: answered by %q, %v", got.who, err)
			}
			a.listen()
			if got, err := a.dial(netip.AddrPortFrom(b.v6, 8080)); err != nil || got.who != "out-v6" {
				t.Errorf("with a new proxy: answered by %q, %v", got.who, err)
			}
		})
	}
}

// Each slot is judged by itself: a pod's namespace may lack a family.
func TestSlotsAreJudgedApart(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	a.enrol(false, false)
	a.proxy[kernel.SlotOutV4].Close()
	a.proxy[kernel.SlotInV6].Close()
	for _, c := range []struct {
		from *testPod
		to   netip.Addr
		who  string
	}{{a, b.v4, ""}, {a, b.v6, "out-v6"}, {b, a.v4, "in-v4"}, {b, a.v6, ""}} {
		got, err := c.from.dial(netip.AddrPortFrom(c.to, 8080))
		if got.who != c.who || c.who == "" && !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%v: answered by %q, %v; want %q", c.to, got.who, err, c.who)
		}
	}
}

// A socket may connect again after a failure, and then still carries the mark: it must not be turned round.
func TestStaleMarkWhileOpen(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	b.serve(":8080", "app-b", nil)
	a.serve(":8080", "app-a", nil)
	a.enrol(true, true)
	a.kill()
	for _, dst := range []netip.Addr{b.v4, b.v6} {
		got, _, _, err := a.connect(socket{setup: mark(kernel.Mark)}, netip.AddrPortFrom(dst, 8080))
		if err != nil || got.who != "app-b" {
			t.Errorf("%v: answered by %q, %v", dst, got.who, err)
		}
	}
}

// After un-enrolment connections go directly, also those of a socket that was marked before: on no account may the
// pod's own application, which listens on the wildcard, answer in place of the destination.
func TestStaleMarkAfterUnenrol(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	a.serve(":8080", "app-a", nil)
	b.serve(":8080", "app-b", nil)
	a.enrol(false, false)
	if err := d.Unenrol(a.cookie); err != nil {
		t.Fatal(err)
	}
	before := a.counters()
	for _, addrs := range [][2]netip.Addr{{a.v4, b.v4}, {a.v6, b.v6}} {
		dst := netip.AddrPortFrom(addrs[1], 8080)
		if got, err := a.dial(dst); err != nil || got.who != "app-b" {
			t.Errorf("%v: answered by %q, %v", dst, got.who, err)
		}
		got, _, _, err := a.connect(socket{setup: mark(kernel.Mark)}, dst)
		if err != nil || got.who != "app-b" {
			t.Errorf("%v with the mark: answered by %q, %v", dst, got.who, err)
		}
		if got, err := b.dial(netip.AddrPortFrom(addrs[0], 8080)); err != nil || got.who != "app-a" {
			t.Errorf("inbound: answered by %q, %v", got.who, err)
		}
	}
	if diff := countersDiff(before, a.counters()); diff != "created=0" {
		t.Errorf("a pod that has left counted %q", diff)
	}
}

// The faults that "enrolled" promises to notice: the connect hook is gone, the rule in the pod is gone.
func TestEscapesAreSeen(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	b.serve(":8080", "app-b", nil)
	a.enrol(false, false)
	if err := d.Check(a.cookie); err != nil {
		t.Fatalf("Check of a sound pod: %v", err)
	}
	t.Run("no rule", func(t *testing.T) {
		h, err := netlink.NewHandleAt(netns.NsHandle(a.ns.Fd()), unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		for _, pref := range []int{100, 101} {
			rule := netlink.NewRule()
			rule.Priority, rule.Family, rule.Mark = pref, unix.AF_INET, kernel.Mark
			if err := h.RuleDel(rule); err != nil {
				t.Fatal(err)
			}
		}
		before := a.counters()
		if got, err := a.dial(netip.AddrPortFrom(b.v4, 8080)); err != nil || got.who != "app-b" {
			t.Fatalf("answered by %q, %v", got.who, err)
		}
		if diff := countersDiff(before, a.counters()); diff != "created=1 steered=1 unrouted=1" {
			t.Errorf("counted %q", diff)
		}
	})
	t.Run("no hook", func(t *testing.T) {
		l, err := link.LoadPinnedLink(d.pins.hook("cdt_connect6"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := l.Detach(); err != nil {
			t.Fatal(err)
		}
		before := a.counters()
		if got, err := a.dial(netip.AddrPortFrom(b.v6, 8080)); err != nil || got.who != "app-b" {
			t.Fatalf("answered by %q, %v", got.who, err)
		}
		if diff := countersDiff(before, a.counters()); diff != "created=1 unseen=1" {
			t.Errorf("counted %q", diff)
		}
		if err := d.Check(a.cookie); !errors.Is(err, ErrMismatch) {
			t.Errorf("Check: %v", err)
		}
		d.Close()
		d = openAt(t, d.cfg.BPFFS) // the next agent repairs it
		if err := d.Check(a.cookie); err != nil {
			t.Errorf("Check after a restart: %v", err)
		}
		if got, err := a.dial(netip.AddrPortFrom(b.v6, 8080)); err != nil || got.who != "out-v6" {
			t.Errorf("after a restart: answered by %q, %v", got.who, err)
		}
	})
}

func TestCheckSaysWhatIsWrong(t *testing.T) {
	d := open(t)
	a, _ := newPods(t, d)
	if err := d.Check(a.cookie); !errors.Is(err, ErrMismatch) {
		t.Errorf("a pod that was never enrolled: %v", err)
	}
	a.enrol(false, false)
	if err := os.Remove(d.pins.lookup(a.cookie)); err != nil {
		t.Fatal(err)
	}
	if err := d.Check(a.cookie); !errors.Is(err, ErrMismatch) {
		t.Errorf("without the lookup program: %v", err)
	}
	if err := d.AttachLookup(a.ns, a.cookie); err != nil {
		t.Fatal(err)
	}
	if err := d.Check(a.cookie); err != nil {
		t.Errorf("repaired: %v", err)
	}
	if err := d.Unenrol(a.cookie); err != nil {
		t.Fatal(err)
	}
	if err := d.Check(a.cookie); !errors.Is(err, ErrMismatch) {
		t.Errorf("un-enrolled: %v", err)
	}
}
