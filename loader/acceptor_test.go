package loader

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"conduit.io/conduit/api/kernel"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The kernel tells of the process that accepts the connection asked about, and of no other that seems to.
func TestAcceptor(t *testing.T) {
	d := open(t)
	node, elsewhere := newPods(t, d)
	addr := netip.MustParseAddrPort("127.0.0.1:10250")
	server, stranger := node.actor(), elsewhere.actor()
	for _, a := range []*actor{server, stranger} {
		if said := a.do("serve", addr); said != "serving" {
			t.Fatal(said)
		}
	}
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &ns); err != nil {
		t.Fatal(err)
	}
	got, ok := node.whoAccepts(addr)
	if !ok || got.UID != 0 || uint64(got.PIDNamespace) != ns.Ino || got.Process.Start == 0 || got.Process.Execs == 0 {
		t.Errorf("the kernel says %+v, %v", got, ok)
	}
	another, ok := elsewhere.whoAccepts(addr)
	if !ok || another.Process == got.Process || another.Process.Start <= got.Process.Start {
		t.Errorf("of another process it says %+v, %v", another, ok)
	}
	if again, ok := node.whoAccepts(addr); !ok || again != got {
		t.Errorf("asked again it says %+v, not %+v", again, got)
	}

	// The same addresses and ports in another namespace, and of a UDP socket in the same one.
	const port = 34567
	from := netip.AddrPortFrom(addr.Addr(), port)
	if err := d.AskAcceptor(node.cookie, from, addr); err != nil {
		t.Fatal(err)
	}
	elsewhere.connectFrom(from, addr)()
	node.inside(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, socket{}.sockaddr(addr)); err != nil {
			return err
		}
		if err := unix.Connect(fd, socket{}.sockaddr(from)); err != nil {
			return err
		}
		_, err = unix.Getpeername(fd)
		return err
	})
	// Another connection of the same processes, from another port.
	node.connectFrom(netip.AddrPortFrom(from.Addr(), port+1), addr)()
	if a, ok, err := d.Acceptor(); ok || err != nil {
		t.Errorf("nobody has accepted, and the kernel says %+v, %v", a, err)
	}
	defer node.connectFrom(from, addr)()
	wait(t, "an answer", func() bool { _, ok, _ := d.Acceptor(); return ok })
	if a, _, err := d.Acceptor(); err != nil || a != got {
		t.Errorf("the kernel says %+v, %v; want %+v", a, err, got)
	}
	if err := d.AskAcceptor(node.cookie, netip.AddrPort{}, netip.AddrPort{}); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := d.Acceptor(); ok || err != nil {
		t.Errorf("nothing is asked, and answered: %v", err)
	}
}

// connectFrom connects from a port; end resets the connection, so that the port is free again at once.
func (p *testPod) connectFrom(from, to netip.AddrPort) (end func()) {
	p.t.Helper()
	var fd int
	p.inside(func() (err error) {
		if fd, err = (socket{}).open(to); err != nil {
			return err
		}
		linger := unix.Linger{Onoff: 1}
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &linger); err != nil {
			return err
		}
		if err := unix.Bind(fd, socket{}.sockaddr(from)); err != nil {
			return err
		}
		return unix.Connect(fd, socket{}.sockaddr(to))
	})
	return func() { unix.Close(fd) }
}

// earlierCounters is kernel.Counters of versions that knew nothing of probes.
type earlierCounters struct {
	Created, Steered uint64
	Bypassed         [8]uint64
}

// An agent takes over from one that knew no kubelet: what was counted stays, and pods go on being steered.
func TestTakeOverFromBeforeProbes(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	b.serve(":8080", "app", nil)
	a.enrol(false, false)
	dir := d.cfg.BPFFS
	d.Close()
	for _, name := range []string{"cdt_counters", "cdt_kubelet", "cdt_vouched", "cdt_witness", "cdt_probes"} {
		if err := os.Remove(filepath.Join(pins(dir).maps(), name)); err != nil {
			t.Fatal(err)
		}
	}
	old, err := ebpf.NewMap(&ebpf.MapSpec{Name: "cdt_counters", Type: ebpf.PerCPUHash, KeySize: 8, ValueSize: 80, MaxEntries: 2048, Flags: unix.BPF_F_NO_PREALLOC})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	values := make([]earlierCounters, cpus)
	for i := range values {
		values[i] = earlierCounters{Created: 5, Steered: 3, Bypassed: [8]uint64{kernel.BypassUnrouted: 2}}
	}
	if err := old.Put(a.cookie, values); err != nil {
		t.Fatal(err)
	}
	if err := old.Pin(filepath.Join(pins(dir).maps(), "cdt_counters")); err != nil {
		t.Fatal(err)
	}
	a.d = openAt(t, dir)
	c := a.counters()
	n := uint64(cpus)
	if c.Created != 5*n || c.Steered != 3*n || c.Bypassed["unrouted"] != 2*n || c.Bypassed["probe"] != 0 || len(c.Bypassed) != kernel.BypassCount {
		t.Errorf("counters of %d CPUs: %+v", n, c)
	}
	got, err := a.dial(netip.AddrPortFrom(b.v4, 8080))
	if err != nil || got.who != "out-v4" {
		t.Errorf("answered by %q, %v", got.who, err)
	}
	if diff := countersDiff(c, a.counters()); diff != "created=1 steered=1" {
		t.Errorf("counted %q", diff)
	}
	left, err := filepath.Glob(filepath.Join(pins(dir).maps(), "*-next"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
