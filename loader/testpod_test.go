package loader

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/api/kernel"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const testTimeout = 5 * time.Second

// testPod is a network namespace that looks like a pod's, with listeners as the proxy has them. What accepts a
// connection writes one line: who it is, its local and its remote address.
type testPod struct {
	t      *testing.T
	d      *Datapath
	ns     *os.File
	cookie uint64
	v4, v6 netip.Addr
	probes []uint16 // ports that the kubelet may dial
	proxy  [kernel.SlotCount]*net.TCPListener
}

// newPods makes two pods on one wire.
func newPods(t *testing.T, d *Datapath) (a, b *testPod) {
	t.Helper()
	a, b = newPod(t, d, 2), newPod(t, d, 3)
	ha, err := netlink.NewHandleAt(netns.NsHandle(a.ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer ha.Close()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(b.ns.Fd())),
	}
	if err := ha.LinkAdd(veth); err != nil {
		t.Fatalf("make veth: %v", err)
	}
	a.address()
	b.address()
	return a, b
}

func newPod(t *testing.T, d *Datapath, host byte) *testPod {
	t.Helper()
	p := &testPod{
		t: t, d: d, ns: newNetns(t),
		v4: netip.AddrFrom4([4]byte{192, 0, 2, host}),
		v6: netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", host)),
	}
	var err error
	if p.cookie, err = NetnsCookie(p.ns); err != nil {
		t.Fatal(err)
	}
	return p
}

func newNetns(t *testing.T) *os.File {
	t.Helper()
	done := make(chan error)
	var ns *os.File
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// address brings the interfaces up and lays the rules and routes of an enrolled pod.
func (p *testPod) address() {
	p.t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(p.ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		p.t.Fatal(err)
	}
	defer h.Close()
	var eth netlink.Link
	for _, name := range []string{"lo", "eth0"} {
		if eth, err = h.LinkByName(name); err == nil {
			err = h.LinkSetUp(eth)
		}
		if err != nil {
			p.t.Fatalf("%s: %v", name, err)
		}
	}
	for _, a := range []netip.Addr{p.v4, p.v6} {
		bits, family := 24, netlink.FAMILY_V4
		if a.Is6() {
			bits, family = 64, netlink.FAMILY_V6
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := h.AddrAdd(eth, addr); err != nil {
			p.t.Fatalf("address %v: %v", a, err)
		}
		p.wire(h, eth, a, family)
	}
}

func (p *testPod) wire(h *netlink.Handle, eth netlink.Link, src netip.Addr, family int) {
	p.t.Helper()
	anywhere := &net.IPNet{IP: make(net.IP, src.BitLen()/8), Mask: net.CIDRMask(0, src.BitLen())}
	for i, index := range []int{1, eth.Attrs().Index} {
		err := h.RouteAdd(&netlink.Route{
			LinkIndex: index, Dst: anywhere, Src: src.AsSlice(), Table: 100, Type: unix.RTN_LOCAL,
			Scope: netlink.SCOPE_HOST, Priority: 10 * i, Family: family,
		})
		if err != nil {
			p.t.Fatalf("route of %v: %v", src, err)
		}
	}
	for _, r := range []struct {
		pref, table int
		action      uint8
	}{{100, 100, unix.FR_ACT_TO_TBL}, {101, 0, unix.FR_ACT_PROHIBIT}} {
		rule := netlink.NewRule()
		rule.Priority, rule.Family, rule.Mark = r.pref, family, kernel.Mark
		if rule.Table = r.table; r.table == 0 {
			rule.Table, rule.Type = -1, r.action
		}
		if err := h.RuleAdd(rule); err != nil {
			p.t.Fatalf("rule %d: %v", r.pref, err)
		}
	}
}

// enrol does what an agent does, in its order.
func (p *testPod) enrol(outOpen, inOpen bool) {
	p.t.Helper()
	p.listen()
	if err := p.d.AttachLookup(p.ns, p.cookie); err != nil {
		p.t.Fatalf("AttachLookup: %v", err)
	}
	if err := p.d.Enrol(p.cookie, Pod{Addrs: []netip.Addr{p.v4, p.v6}, OutOpen: outOpen, InOpen: inOpen, Probes: p.probes}); err != nil {
		p.t.Fatalf("Enrol: %v", err)
	}
}

// listen starts the proxy's listeners.
func (p *testPod) listen() {
	p.t.Helper()
	for slot, addr := range []string{"127.0.0.1:15006", "[::1]:15006", "127.0.0.1:15001", "[::1]:15001"} {
		l := p.serve(addr, []string{"in-v4", "in-v6", "out-v4", "out-v6"}[slot], transparent)
		p.proxy[slot] = l
		control(p.t, l, func(fd int) error { return p.d.SetListener(p.cookie, kernel.Slot(slot), fd) })
	}
}

func transparent(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return err
	}
	if unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
}

// kill closes the listeners, as the death of the proxy does.
func (p *testPod) kill() {
	for _, l := range p.proxy {
		if l != nil {
			l.Close()
		}
	}
}

// serve listens in the pod. Every accepted connection gets its line.
func (p *testPod) serve(addr, name string, setup func(fd int) error) *net.TCPListener {
	p.t.Helper()
	var l *net.TCPListener
	p.inside(func() error {
		lc := net.ListenConfig{Control: rawControl(setup)}
		lc.SetMultipathTCP(false)
		ln, err := lc.Listen(p.t.Context(), "tcp", addr)
		if err == nil {
			l = ln.(*net.TCPListener)
		}
		return err
	})
	p.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %v %v\n", name, unmap(c.LocalAddr()), unmap(c.RemoteAddr()))
			go func() { // held until the client goes, so that the client's port stays taken
				var b [1]byte
				c.Read(b[:])
				c.Close()
			}()
		}
	}()
	return l
}

// inside runs f on a thread in the pod's namespace; an error ends the test.
func (p *testPod) inside(f func() error) {
	p.t.Helper()
	if err := p.try(f); err != nil {
		p.t.Fatal(err)
	}
}

func (p *testPod) try(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Setns(int(p.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// counters are the pod's own.
func (p *testPod) counters() Counters {
	p.t.Helper()
	all, err := p.d.Counters()
	if err != nil {
		p.t.Fatal(err)
	}
	return all[p.cookie]
}

func unmap(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// answer is the line that the accepting side wrote.
type answer struct {
	who           string
	local, remote netip.AddrPort
}

func parseAnswer(line string) (answer, error) {
	f := strings.Fields(line)
	if len(f) != 3 {
		return answer{}, fmt.Errorf("answer %q", line)
	}
	local, err1 := netip.ParseAddrPort(f[1])
	remote, err2 := netip.ParseAddrPort(f[2])
	if err1 != nil || err2 != nil {
		return answer{}, fmt.Errorf("answer %q", line)
	}
	return answer{f[0], local, remote}, nil
}
