package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"conduit.io/conduit/api/kernel"

	"golang.org/x/sys/unix"
)

// kubeletWorld is a node with a kubelet, and a STRICT pod of it whose application listens on port 8080.
type kubeletWorld struct {
	d         *Datapath
	node, pod *testPod
	kubelet   *actor
	process   kernel.Process
}

func newKubeletWorld(t *testing.T) *kubeletWorld {
	t.Helper()
	d := open(t)
	w := &kubeletWorld{d: d}
	w.node, w.pod = newPods(t, d)
	w.pod.serve(":8080", "app", nil)
	w.pod.probes = []uint16{8081, 8080}
	w.pod.enrol(false, false)
	w.kubelet = w.node.actor()
	w.process = w.node.processOf(w.kubelet)
	if err := d.SetKubelet(w.node.cookie, w.process); err != nil {
		t.Fatal(err)
	}
	return w
}

// processOf has the kernel say who an actor is.
func (p *testPod) processOf(a *actor) kernel.Process {
	p.t.Helper()
	addr := netip.MustParseAddrPort("127.0.0.1:10250")
	if said := a.do("serve", addr); said != "serving" {
		p.t.Fatal(said)
	}
	got, ok := p.whoAccepts(addr)
	if !ok {
		p.t.Fatal("the kernel did not see who accepts")
	}
	return got.Process
}

// whoAccepts asks the kernel, and connects.
func (p *testPod) whoAccepts(addr netip.AddrPort) (a Acceptor, ok bool) {
	p.t.Helper()
	var fd int
	p.inside(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, socket{}.sockaddr(netip.AddrPortFrom(addr.Addr(), 0))); err != nil {
			return err
		}
		from, _ := names(fd)
		if err := p.d.AskAcceptor(p.cookie, from, addr); err != nil {
			return err
		}
		return unix.Connect(fd, socket{}.sockaddr(addr))
	})
	defer unix.Close(fd)
	wait(p.t, "an answer", func() bool {
		var err error
		if a, ok, err = p.d.Acceptor(); err != nil {
			p.t.Fatal(err)
		}
		return ok
	})
	return a, ok
}

func (w *kubeletWorld) at(addr netip.Addr) netip.AddrPort { return netip.AddrPortFrom(addr, 8080) }

// vouched are the connections that are vouched for now.
func (w *kubeletWorld) vouched(t *testing.T) (all []kernel.Tuple) {
	t.Helper()
	var conn kernel.Tuple
	var yes uint8
	it := w.d.maps["cdt_vouched"].Iterate()
	for it.Next(&conn, &yes) {
		all = append(all, conn)
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// wantApp expects that the application answered, and saw the node.
func (w *kubeletWorld) wantApp(t *testing.T, a answer, err error, node netip.Addr) {
	t.Helper()
	if err != nil || a.who != "app" || a.remote.Addr() != node {
		t.Errorf("answered by %q to %v, %v; want the application, to %v", a.who, a.remote, err, node)
	}
}

// wantRefused expects that the application was not reached: the proxy has what STRICT refuses.
func wantRefused(t *testing.T, a answer, err error) {
	t.Helper()
	if err != nil || !strings.HasPrefix(a.who, "in-v") {
		t.Errorf("answered by %q, %v; want the proxy", a.who, err)
	}
}

// What the kubelet dials reaches the application itself, whether a proxy is alive or not, and is counted.
func TestProbesReachApplications(t *testing.T) {
	w := newKubeletWorld(t)
	closed := netip.AddrPortFrom(w.pod.v4, 8081)
	for _, proxy := range []string{"alive", "dead"} {
		if proxy == "dead" {
			w.pod.kill()
		}
		t.Run("proxy "+proxy, func(t *testing.T) {
			before := w.pod.counters()
			a, err := w.kubelet.dial(w.at(w.pod.v4), 0)
			w.wantApp(t, a, err, w.node.v4)
			a, err = w.kubelet.dial(w.at(w.pod.v6), 0)
			w.wantApp(t, a, err, w.node.v6)
			a, err = parseAnswer(w.kubelet.do("mapped", w.at(w.pod.v4)))
			w.wantApp(t, a, err, w.node.v4)
			if said := w.kubelet.do("dial", closed, 0); !strings.Contains(said, "connection refused") {
				t.Errorf("a port that is closed: %s", said)
			}
			if diff := countersDiff(before, w.pod.counters()); diff != "created=0 probe=4" {
				t.Errorf("counted %q", diff)
			}
		})
	}
	// The application has answered before the kernel is done with the connection.
	wait(t, "the end of what was vouched for", func() bool { return len(w.vouched(t)) == 0 })
}

// Of everybody who shares the node's address, and more than that, only the kubelet is vouched for.
func TestOnlyTheKubeletIsVouchedFor(t *testing.T) {
	w := newKubeletWorld(t)
	other := w.node.actor()
	for _, addr := range []netip.Addr{w.pod.v4, w.pod.v6} {
		a, err := other.dial(w.at(addr), 0)
		wantRefused(t, a, err)
	}
	t.Run("child of the kubelet", func(t *testing.T) {
		a, err := parseAnswer(w.kubelet.do("child", "dial", w.at(w.pod.v4), 0))
		wantRefused(t, a, err)
	})
	t.Run("socket of the kubelet, connected by a child", func(t *testing.T) {
		a, err := parseAnswer(w.kubelet.do("lend", w.at(w.pod.v4), netip.AddrPortFrom(w.pod.v4, 8081)))
		wantRefused(t, a, err)
	})
	t.Run("with the process ID of a kubelet that was", func(t *testing.T) {
		earlier := w.process
		earlier.Start--
		w.is(t, earlier)
		a, err := w.kubelet.dial(w.at(w.pod.v4), 0)
		wantRefused(t, a, err)
	})
	t.Run("started at the same time", func(t *testing.T) {
		twin := w.process
		twin.Tgid++
		w.is(t, twin)
		a, err := w.kubelet.dial(w.at(w.pod.v4), 0)
		wantRefused(t, a, err)
	})
	w.is(t, w.process)
	a, err := w.kubelet.dial(w.at(w.pod.v4), 0)
	w.wantApp(t, a, err, w.node.v4)
	t.Run("another program in the kubelet's process", func(t *testing.T) {
		w.kubelet.do("exec")
		a, err := w.kubelet.dial(w.at(w.pod.v4), 0)
		wantRefused(t, a, err)
		w.is(t, w.node.processOf(w.kubelet)) // found anew
		a, err = w.kubelet.dial(w.at(w.pod.v4), 0)
		w.wantApp(t, a, err, w.node.v4)
	})
	t.Run("nobody", func(t *testing.T) {
		if err := w.d.ForgetKubelet(); err != nil {
			t.Fatal(err)
		}
		a, err := w.kubelet.dial(w.at(w.pod.v4), 0)
		wantRefused(t, a, err)
	})
}

func (w *kubeletWorld) is(t *testing.T, p kernel.Process) {
	t.Helper()
	if err := w.d.SetKubelet(w.node.cookie, p); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := w.d.Kubelet(w.node.cookie); err != nil || !ok || got != p {
		t.Fatalf("the kubelet is %+v, %v, %v", got, ok, err)
	}
}

// The kubelet, which others can make dial, reaches the ports alone that the pod's own probes name.
func TestOtherPortsAreNotProbed(t *testing.T) {
	w := newKubeletWorld(t)
	w.pod.serve(":8090", "app", nil)
	a, err := w.kubelet.dial(netip.AddrPortFrom(w.pod.v4, 8090), 0)
	wantRefused(t, a, err)
	a, err = w.kubelet.dial(w.at(w.pod.v4), 0)
	w.wantApp(t, a, err, w.node.v4)
	pod := Pod{Addrs: []netip.Addr{w.pod.v4, w.pod.v6}, Probes: make([]uint16, kernel.MaxProbes)}
	pod.Probes[kernel.MaxProbes-1] = 8090
	if err := w.d.Enrol(w.pod.cookie, pod); err != nil {
		t.Fatal(err)
	}
	if all, err := w.d.Enrolled(); err != nil || !slices.Equal(all[w.pod.cookie].Probes, pod.Probes) {
		t.Errorf("enrolled: %+v, %v", all, err)
	}
	a, err = w.kubelet.dial(netip.AddrPortFrom(w.pod.v6, 8090), 0)
	w.wantApp(t, a, err, w.node.v6)
	a, err = w.kubelet.dial(w.at(w.pod.v4), 0)
	wantRefused(t, a, err)
	pod.Probes = append(pod.Probes, 8080)
	if err := w.d.Enrol(w.pod.cookie, pod); err == nil {
		t.Error("more ports than there is room for were taken")
	}
	pod.Probes = nil
	if err := w.d.Enrol(w.pod.cookie, pod); err != nil {
		t.Fatal(err)
	}
	a, err = w.kubelet.dial(netip.AddrPortFrom(w.pod.v6, 8090), 0)
	wantRefused(t, a, err)
}

// The kubelet's process vouches for nothing outside of the node's namespace, where addresses are others'.
func TestOtherNamespacesVouchForNothing(t *testing.T) {
	w := newKubeletWorld(t)
	elsewhere := newNetns(t)
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), elsewhere.Fd())
	if said := w.kubelet.do("within", path, "127.0.0.1:8080", 4321); !strings.Contains(said, "error") {
		t.Fatalf("nobody listens there: %s", said)
	}
	cookie, err := NetnsCookie(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	// Only the node's own.
	if err := w.d.SetKubelet(cookie, w.process); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := w.d.Kubelet(w.node.cookie); err != nil || ok {
		t.Errorf("two nodes have the same kubelet: %v", err)
	}
	a, err := w.kubelet.dial(w.at(w.pod.v4), 0)
	wantRefused(t, a, err)
}

// What was vouched for once is nobody's afterwards: not who has the port next, not even where the end went unnoticed.
func TestVouchingIsNotInherited(t *testing.T) {
	w := newKubeletWorld(t)
	other := w.node.actor()
	const port = 23456
	for _, c := range []struct{ pod, node netip.Addr }{{w.pod.v4, w.node.v4}, {w.pod.v6, w.node.v6}} {
		a, err := w.kubelet.dial(w.at(c.pod), port)
		w.wantApp(t, a, err, c.node)
		if all := w.vouched(t); len(all) != 0 {
			t.Errorf("still vouched for: %v", all)
		}
		a, err = other.dial(w.at(c.pod), port)
		wantRefused(t, a, err)
		stale := kernel.NewTuple(netip.AddrPortFrom(c.node, port), w.at(c.pod))
		if err := w.d.maps["cdt_vouched"].Put(&stale, uint8(1)); err != nil {
			t.Fatal(err)
		}
		a, err = other.dial(w.at(c.pod), port)
		wantRefused(t, a, err)
	}
	t.Run("killed kubelet", func(t *testing.T) {
		// Established, and orphaned by the kill: the port is free when the kernel says so, and then nobody is vouched for.
		w.kubelet.do("hold", w.at(w.pod.v4))
		if all := w.vouched(t); len(all) != 1 {
			t.Fatalf("vouched for: %v", all)
		}
		w.kubelet.cmd.Process.Kill()
		wait(t, "the connection's end", func() bool { return len(w.vouched(t)) == 0 })
	})
}

// The list is bounded: who falls out of it is refused.
func TestVouchedConnectionsAreBounded(t *testing.T) {
	const cookie = 1 << 40 // of no namespace
	d := open(t)
	prog, err := d.lookupProgram(cookie)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	if err := d.maps["cdt_pods"].Put(uint64(cookie), eightAddresses(t, enrolled)); err != nil {
		t.Fatal(err)
	}
	probes := kernel.Probes{Nports: 3, Ports: [kernel.MaxProbes]uint16{8080, 8081, 8082}}
	if err := d.maps["cdt_probes"].Put(uint64(cookie), &probes); err != nil {
		t.Fatal(err)
	}
	sockets, closeAll := fillSlots(t, d, cookie)
	defer closeAll()
	for _, c := range []struct {
		src, dst string
		slot     int
	}{{"198.51.100.1", "192.0.2.2", inV4}, {"2001:db8:9::1", "2001:db8::2", inV6}} {
		s := syn(c.src, c.dst, unix.IPPROTO_TCP)
		conn := kernel.NewTuple(
			netip.AddrPortFrom(netip.MustParseAddr(c.src), binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, s.RemotePort))),
			netip.AddrPortFrom(netip.MustParseAddr(c.dst), uint16(s.LocalPort)))
		put := func(conn kernel.Tuple) {
			if err := d.maps["cdt_vouched"].Put(&conn, uint8(1)); err != nil {
				t.Fatal(err)
			}
		}
		put(conn)
		if verdict, socket := runLookup(t, prog, s); verdict != pass || socket != 0 {
			t.Errorf("%s vouched for: verdict %d, socket %d", c.src, verdict, socket)
		}
		for name, change := range map[string]func(*skLookup){
			"another port":        func(s *skLookup) { s.RemotePort++ },
			"another destination": func(s *skLookup) { s.LocalPort++ },
			"another source":      func(s *skLookup) { s.RemoteIP4[3]++; s.RemoteIP6[15]++ },
		} {
			near := s
			change(&near)
			if verdict, socket := runLookup(t, prog, near); verdict != pass || socket != sockets[c.slot] {
				t.Errorf("%s, %s: verdict %d, socket %d", c.src, name, verdict, socket)
			}
		}
		forgotten := s // never seen by the program, so that it is the first to go
		forgotten.LocalPort += 2
		conn.Dport += 2
		put(conn)
		size := int(d.maps["cdt_vouched"].MaxEntries())
		for i := range 3 * size {
			put(kernel.NewTuple(netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(i)), netip.AddrPortFrom(netip.MustParseAddr("203.0.113.2"), uint16(i>>16))))
		}
		if verdict, socket := runLookup(t, prog, forgotten); verdict != pass || socket != sockets[c.slot] {
			t.Errorf("%s fallen out: verdict %d, socket %d", c.src, verdict, socket)
		}
	}
}

// Agents come and go: who is the kubelet stays known.
func TestKubeletStaysKnown(t *testing.T) {
	w := newKubeletWorld(t)
	w.d.Close()
	a, err := w.kubelet.dial(w.at(w.pod.v4), 0)
	w.wantApp(t, a, err, w.node.v4)
	w.d = openAt(t, w.d.cfg.BPFFS)
	if got, ok, err := w.d.Kubelet(w.node.cookie); err != nil || !ok || got != w.process {
		t.Errorf("the next agent finds %+v, %v, %v", got, ok, err)
	}
	a, err = w.kubelet.dial(w.at(w.pod.v6), 0)
	w.wantApp(t, a, err, w.node.v6)
}
