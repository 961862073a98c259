package loader

import (
	"bufio"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"unsafe"

	"conduit.io/conduit/api/kernel"

	"golang.org/x/sys/unix"
)

// tagged tags a socket as the proxy does: by the raw system call, on a descriptor of the map.
func tagged(m *os.File, tag kernel.SockTag) func(int) error {
	return func(fd int) error {
		key := uint32(fd)
		attr := struct {
			mapFD, _   uint32
			key, value uint64
			flags      uint64
		}{mapFD: uint32(m.Fd()), key: uint64(uintptr(unsafe.Pointer(&key))), value: uint64(uintptr(unsafe.Pointer(&tag)))}
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_UPDATE_ELEM, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		if errno != 0 {
			return errno
		}
		return nil
	}
}

func (p *testPod) tags() *os.File {
	m := p.d.SockTags()
	p.t.Cleanup(func() { m.Close() })
	return m
}

func TestProxysOwnConnectionsPass(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	a.enrol(false, false)
	b.serve(":8080", "app", nil)
	proxys := socket{setup: tagged(a.tags(), kernel.NewSockTag(kernel.KindProxy, netip.AddrPort{}))}
	for _, addr := range []netip.Addr{b.v4, b.v6} {
		before := a.counters()
		got, _, _, err := a.connect(proxys, netip.AddrPortFrom(addr, 8080))
		if err != nil || got.who != "app" {
			t.Errorf("%v: answered by %q, %v", addr, got.who, err)
		}
		if diff := countersDiff(before, a.counters()); diff != "created=1 proxy=1" {
			t.Errorf("%v: counted %q", addr, diff)
		}
	}
}

// The application sees the client that the proxy names, in accept and in getpeername.
func TestVirtualSource(t *testing.T) {
	client4 := netip.MustParseAddrPort("203.0.113.9:40001")
	client6 := netip.MustParseAddrPort("[2001:db8:1::9]:40002")
	d := open(t)
	a, _ := newPods(t, d)
	a.enrol(false, false)
	tags := a.tags()
	for _, c := range []struct {
		name, listen string
		dst          netip.Addr
		tag          kernel.SockTag
		want         netip.AddrPort // zero: the proxy's own address
	}{
		{"v4", "192.0.2.2:8081", a.v4, kernel.NewSockTag(kernel.KindVirtual, client4), client4},
		{"v6", "[2001:db8::2]:8081", a.v6, kernel.NewSockTag(kernel.KindVirtual, client6), client6},
		{"v4, dual-stack application", ":8082", a.v4, kernel.NewSockTag(kernel.KindVirtual, client4), client4},
		{"v6, dual-stack application", ":8083", a.v6, kernel.NewSockTag(kernel.KindVirtual, client6), client6},
		{"v6 client, v4 application", "192.0.2.2:8084", a.v4, kernel.NewSockTag(kernel.KindVirtual, client6), netip.AddrPort{}},
		{"v4 client, v6 application", "[2001:db8::2]:8084", a.v6, kernel.NewSockTag(kernel.KindVirtual, client4), client4},
		{"no virtual source", ":8085", a.v4, kernel.NewSockTag(kernel.KindProxy, client4), netip.AddrPort{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := a.accepting(c.listen)
			port := l.Addr().(*net.TCPAddr).AddrPort().Port()
			client, server := a.pair(l, tagged(tags, c.tag), netip.AddrPortFrom(c.dst, port))
			want := c.want
			if !want.IsValid() {
				want = unmap(client.LocalAddr())
			}
			if got := unmap(server.RemoteAddr()); got != want { // what accept(2) said
				t.Errorf("accept says %v, want %v", got, want)
			}
			if got := peerName(t, server); got != want {
				t.Errorf("getpeername says %v, want %v", got, want)
			}
			if left := a.carried(); left != 0 {
				t.Errorf("%d entries stayed in cdt_carry", left)
			}
		})
	}
}

// An accepted socket keeps its virtual source, and bytes go on, when the pod leaves the mesh.
func TestUnenrolKeepsConnections(t *testing.T) {
	client := netip.MustParseAddrPort("203.0.113.9:40001")
	d := open(t)
	a, b := newPods(t, d)
	a.enrol(false, false)
	l := a.accepting(":8080")
	_, inbound := a.pair(l, tagged(a.tags(), kernel.NewSockTag(kernel.KindVirtual, client)), netip.AddrPortFrom(a.v4, 8080))
	proxy := a.accepting("127.0.0.1:15101")
	control(t, proxy, func(fd int) error {
		return errors.Join(transparent(fd), d.SetListener(a.cookie, kernel.SlotOutV4, fd))
	})
	out, steered := a.pair(proxy, nil, netip.AddrPortFrom(b.v4, 443))
	if err := d.Unenrol(a.cookie); err != nil {
		t.Fatal(err)
	}
	if got := peerName(t, inbound); got != client {
		t.Errorf("getpeername after un-enrolment says %v, want %v", got, client)
	}
	exchange(t, out, steered)
	exchange(t, steered, out)
	// The proxy may still dial for connections that it was given before.
	_, again := a.pair(l, tagged(a.tags(), kernel.NewSockTag(kernel.KindVirtual, client)), netip.AddrPortFrom(a.v4, 8080))
	if got := unmap(again.RemoteAddr()); got != client {
		t.Errorf("a dial after un-enrolment is shown as %v, want %v", got, client)
	}
	if pods, err := d.Enrolled(); err != nil || len(pods) != 0 {
		t.Errorf("enrolled: %v, %v", pods, err)
	}
}

// Enrolment touches no connection that is there already, and counts none.
func TestEnrolKeepsConnections(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	out, far := a.pairTo(b.accepting(":8080"), netip.AddrPortFrom(b.v4, 8080))
	near, in := b.pairTo(a.accepting(":8080"), netip.AddrPortFrom(a.v6, 8080))
	a.enrol(false, false)
	for _, p := range [][2]*net.TCPConn{{out, far}, {far, out}, {near, in}, {in, near}} {
		exchange(t, p[0], p[1])
	}
	// Four sockets are the proxy's listeners, made before the enrolment too.
	if diff := countersDiff(Counters{}, a.counters()); diff != "created=0" {
		t.Errorf("counted %q", diff)
	}
}

// The carried address belongs to one 4-tuple: a connection between two own addresses with the same ports is another.
func TestVirtualSourceBetweenOwnAddresses(t *testing.T) {
	client := netip.MustParseAddrPort("203.0.113.9:40001")
	d := open(t)
	a, _ := newPods(t, d)
	a.enrol(false, false)
	l := a.accepting(":8080")
	tag := tagged(a.tags(), kernel.NewSockTag(kernel.KindVirtual, client))
	from := bindTo(a.v4)
	_, server := a.pair(l, func(fd int) error { return errors.Join(from(fd), tag(fd)) }, netip.MustParseAddrPort("127.0.0.1:8080"))
	if got := unmap(server.RemoteAddr()); got != client {
		t.Errorf("accept says %v, want %v", got, client)
	}
}

// A failed dial of the proxy leaves its entry behind; a local connection with the same ports must not inherit it.
func TestStaleCarryIsNotInherited(t *testing.T) {
	d := open(t)
	a, _ := newPods(t, d)
	a.enrol(false, false)
	dst := netip.AddrPortFrom(a.v4, 8080)
	from := func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.Bind(fd, &unix.SockaddrInet4{Port: 33333, Addr: a.v4.As4()}))
	}
	tag := tagged(a.tags(), kernel.NewSockTag(kernel.KindVirtual, netip.MustParseAddrPort("203.0.113.9:1")))
	both := func(fd int) error { return errors.Join(from(fd), tag(fd)) }
	if _, _, _, err := a.connect(socket{setup: both}, dst); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("dial of a closed port: %v", err)
	}
	if n := a.carried(); n != 1 {
		t.Fatalf("%d entries in cdt_carry after the failed dial, want 1", n)
	}
	a.serve(":8080", "app", nil)
	got, local, _, err := a.connect(socket{setup: from}, dst)
	if err != nil || local.Port() != 33333 {
		t.Fatalf("connected from %v, %v", local, err)
	}
	if got.remote != local {
		t.Errorf("the application sees %v, want %v", got.remote, local)
	}
	if n := a.carried(); n != 0 {
		t.Errorf("%d entries in cdt_carry, want 0", n)
	}
}

// accepting listens in the pod; the caller accepts.
func (p *testPod) accepting(addr string) *net.TCPListener {
	p.t.Helper()
	var l *net.TCPListener
	p.inside(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		ln, err := lc.Listen(p.t.Context(), "tcp", addr)
		if err == nil {
			l = ln.(*net.TCPListener)
		}
		return err
	})
	p.t.Cleanup(func() { l.Close() })
	return l
}

func (p *testPod) pairTo(l *net.TCPListener, dst netip.AddrPort) (client, server *net.TCPConn) {
	p.t.Helper()
	return p.pair(l, nil, dst)
}

// pair dials dst in the pod and accepts at l.
func (p *testPod) pair(l *net.TCPListener, setup func(int) error, dst netip.AddrPort) (client, server *net.TCPConn) {
	p.t.Helper()
	p.inside(func() error {
		d := net.Dialer{Timeout: testTimeout, Control: rawControl(setup)}
		d.SetMultipathTCP(false)
		c, err := d.Dial("tcp", dst.String())
		if err == nil {
			client = c.(*net.TCPConn)
		}
		return err
	})
	server, err := l.AcceptTCP()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func exchange(t *testing.T, from, to *net.TCPConn) {
	t.Helper()
	if _, err := from.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(to).ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("read %q, %v", line, err)
	}
}

func peerName(t *testing.T, c *net.TCPConn) netip.AddrPort {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var peer netip.AddrPort
	if err := rc.Control(func(fd uintptr) { _, peer = names(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	return peer
}

// carried is how many entries cdt_carry has.
func (p *testPod) carried() int {
	p.t.Helper()
	var (
		key kernel.CarryKey
		tag kernel.SockTag
		n   int
	)
	it := p.d.maps["cdt_carry"].Iterate()
	for it.Next(&key, &tag) {
		n++
	}
	if err := it.Err(); err != nil {
		p.t.Fatal(err)
	}
	return n
}
