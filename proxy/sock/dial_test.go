package sock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

func TestDial(t *testing.T) {
	l := start(t)
	addr, conns := listen(t, l)
	c, err := dialed(t, l, DialOptions{Addr: addrPortOf(t, addr)})
	if err != nil {
		t.Fatal(err)
	}
	s := recv(t, conns)
	var pc, ps *probe
	do(t, l, func() {
		if c.LocalAddr() != s.RemoteAddr() || c.RemoteAddr() != s.LocalAddr() {
			t.Errorf("dialled %v-%v, accepted %v-%v", c.LocalAddr(), c.RemoteAddr(), s.LocalAddr(), s.RemoteAddr())
		}
		for _, x := range []*Conn{c, s} {
			if v, err := unix.GetsockoptInt(x.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); err != nil || v != 1 {
				t.Errorf("TCP_NODELAY = %d, %v", v, err)
			}
			if v, err := unix.GetsockoptInt(x.fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); err != nil || v != keepIdle {
				t.Errorf("TCP_KEEPIDLE = %d, %v", v, err)
			}
		}
		pc, ps = watch(t, c), watch(t, s)
		s.Write([]byte("server first"))
		s.CloseWrite()
		pc.onEOF = c.Close
	})
	if e1, e2 := recv(t, pc.closed), recv(t, ps.closed); e1 != nil || e2 != nil {
		t.Errorf("Closed(%v), Closed(%v)", e1, e2)
	}
	if pc.data.String() != "server first" {
		t.Errorf("got %q", pc.data.String())
	}
}

func TestDialErrors(t *testing.T) {
	l := start(t)
	closedPort := func() netip.AddrPort {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		return addrPortOf(t, ln.Addr().String())
	}
	tests := []struct {
		name   string
		o      DialOptions
		err    error
		reason mesh.Reason
	}{
		{"refused", DialOptions{Addr: closedPort()}, unix.ECONNREFUSED, mesh.ReasonConnect},
		{"v4-mapped, refused", DialOptions{Addr: netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), closedPort().Port())},
			unix.ECONNREFUSED, mesh.ReasonConnect},
		{"timeout", DialOptions{Addr: deaf(t), Timeout: 30 * time.Millisecond}, ErrTimeout, mesh.ReasonConnectTimeout},
		{"no address", DialOptions{}, unix.EINVAL, mesh.ReasonConnect},
		{"broadcast", DialOptions{Addr: netip.MustParseAddrPort("255.255.255.255:1")}, unix.ENETUNREACH, mesh.ReasonConnect},
		{"no tag map", DialOptions{Addr: deaf(t), Tag: &kernel.SockTag{}}, ErrNoTagMap, mesh.ReasonConnect},
		{"closed netns", DialOptions{Addr: deaf(t), Netns: &Netns{fd: -1}}, os.ErrClosed, mesh.ReasonConnect},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			c, err := dialed(t, l, tc.o)
			var de *DialError
			if c != nil || !errors.Is(err, tc.err) || !errors.As(err, &de) {
				t.Errorf("Dial = %v, %v; want a DialError that wraps %v", c, err, tc.err)
			}
			if r := Reason(err); r != tc.reason {
				t.Errorf("Reason = %q, want %q", r, tc.reason)
			}
		})
	}
}

// deaf is an address where SYNs are dropped: a listener whose queue is full.
func deaf(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = unix.Listen(fd, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	addr := sockName(fd, unix.SYS_GETSOCKNAME)
	for range 4 {
		d := net.Dialer{Timeout: 20 * time.Millisecond}
		c, err := d.Dial("tcp", addr.String())
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue of a listener does not fill")
	return addr
}

func TestCancelDial(t *testing.T) {
	l := start(t)
	addr, conns := listen(t, l)
	for name, target := range map[string]netip.AddrPort{"while connecting": deaf(t), "at once": addrPortOf(t, addr)} {
		t.Run(name, func(t *testing.T) {
			before := 0
			do(t, l, func() {
				before = l.Watched()
				cancel := Dial(l, DialOptions{Addr: target}, func(*Conn, error) { t.Error("done was called after cancel") })
				cancel()
				cancel()
			})
			if name == "at once" {
				c := recv(t, conns)
				do(t, l, c.Abort)
			}
			until(t, l, func() bool { return l.Watched() == before })
		})
	}
}

// starve has n clients connect, and the loop meet them without a descriptor to spare.
func starve(t *testing.T, l *loop.Loop, addr string, n int) []net.Conn {
	t.Helper()
	hold, held := make(chan struct{}), make(chan struct{})
	l.Post(func() { close(held); <-hold })
	<-held
	var clients []net.Conn
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		clients = append(clients, c)
	}
	free := fillGaps(t)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: free, Max: old.Max}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &low, nil); err != nil {
		t.Fatal(err)
	}
	close(hold)
	for range 3 {
		do(t, l, func() {})
	}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil); err != nil {
		t.Fatal(err)
	}
	return clients
}

// fillGaps makes all descriptors below the returned one be in use.
func fillGaps(t *testing.T) uint64 {
	t.Helper()
	highest := 0
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range dir {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			highest = max(highest, n)
		}
	}
	for {
		fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if fd > highest {
			unix.Close(fd)
			return uint64(fd)
		}
		t.Cleanup(func() { unix.Close(fd) })
	}
}

// TestListenerRefusesWhenStarved: after a time of waiting, clients get a clear end.
func TestListenerRefusesWhenStarved(t *testing.T) {
	l := start(t)
	accepted := 0
	s := server(t, l, func(c *Conn) { accepted++; c.Abort() })
	var addr string
	do(t, l, func() { addr = s.Addr().String(); s.rests = acceptPatience })
	for _, c := range starve(t, l, addr, 8) {
		if _, err := c.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("client read %v, want a reset", err)
		}
	}
	do(t, l, func() {
		if accepted != 0 || s.reserve < 0 {
			t.Errorf("%d connections accepted without descriptors; reserve %d", accepted, s.reserve)
		}
	})
}

func TestListenerWaitsForDescriptors(t *testing.T) {
	l := start(t)
	addr, conns := listen(t, l)
	const n = 8
	starve(t, l, addr, n)
	if len(conns) > 0 {
		t.Errorf("%d connections accepted without descriptors", len(conns))
	}
	for range n {
		c := recv(t, conns)
		do(t, l, c.Abort)
	}
}

func TestListenerCloseDeliversTheQueue(t *testing.T) {
	l := start(t)
	conns := make(chan *Conn, 100)
	var s *Listener
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, _ := ln.(*net.TCPListener).File()
	ln.Close()
	do(t, l, func() { s, err = Listen(l, f, func(c *Conn) { conns <- c }) })
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	do(t, l, func() {
		for range 50 { // the loop is here: all of them wait
			c, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		s.Close()
		s.Close()
	})
	if len(conns) != 50 {
		t.Errorf("%d of 50 connections were delivered", len(conns))
	}
	for len(conns) > 0 {
		c := <-conns
		do(t, l, c.Abort)
	}
	do(t, l, func() {
		if _, err := Listen(l, os.Stdin, nil); err == nil {
			t.Error("Listen took standard input for a listener")
		}
	})
}

// newNetns makes a network namespace with its loopback up.
func newNetns(t *testing.T) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NEEDS ROOT: network namespaces")
	}
	type result struct {
		f   *os.File
		err error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ch <- result{nil, err}
			return
		}
		f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		if err == nil {
			err = loopbackUp()
		}
		ch <- result{f, err}
	}()
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.f.Close() })
	return r.f
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func TestDialInNetns(t *testing.T) {
	f := newNetns(t)
	ns, err := OpenNetns(f)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	fd, err := ns.socket(unix.AF_INET)
	if err == nil {
		err = errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 1024))
	}
	if err != nil {
		t.Fatal(err)
	}
	ln := os.NewFile(uintptr(fd), "listener")
	defer ln.Close()
	conns := make(chan *Conn, 1000)
	l1, l2 := start(t), start(t)
	var s *Listener
	do(t, l1, func() { s, err = Listen(l1, ln, func(c *Conn) { conns <- c }) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l1.Do(s.Close) }()
	addr := s.Addr()
	results := make(chan error, 400)
	for i := range 200 { // two loops enter the namespace at the same time, beside dials outside of it
		l := l1
		if i%2 == 1 {
			l = l2
		}
		l.Post(func() {
			Dial(l, DialOptions{Addr: addr, Netns: ns}, func(c *Conn, err error) {
				if err == nil {
					c.SetReceiver(&echo{c: c, open: new(int)})
					c.Close()
				}
				results <- err
			})
			Dial(l, DialOptions{Addr: addr}, func(_ *Conn, err error) {
				if !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("dial from outside = %v, want refused", err)
				}
				results <- nil
			})
		})
	}
	for range cap(results) {
		if err := recv(t, results); err != nil {
			t.Errorf("dial inside the namespace: %v", err)
		}
	}
	for range 200 {
		c := recv(t, conns)
		do(t, l1, c.Abort)
	}
	if _, err := OpenNetns(ln); err == nil {
		t.Error("OpenNetns took a socket for a namespace")
	}
}

func TestTagIsThereBeforeConnect(t *testing.T) {
	m, err := storageMap()
	if errors.Is(err, unix.EPERM) {
		t.Skip("SKIPPED, NEEDS ROOT: BPF maps")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	tags, err := NewTagMap(m)
	if err != nil {
		t.Fatal(err)
	}
	defer tags.Close()
	l := start(t)
	addr, conns := listen(t, l)
	want := kernel.NewSockTag(kernel.KindVirtual, netip.MustParseAddrPort("10.1.2.3:4567"))
	c, err := dialed(t, l, DialOptions{Addr: addrPortOf(t, addr), Tag: &want, Tags: tags})
	if err != nil {
		t.Fatal(err)
	}
	s := recv(t, conns)
	do(t, l, func() {
		var got kernel.SockTag
		if err := lookupTag(m, c.fd, &got); err != nil || got != want {
			t.Errorf("tag of the dialled socket = %+v, %v; want %+v", got, err, want)
		}
		if err := lookupTag(m, s.fd, &got); !errors.Is(err, unix.ENOENT) {
			t.Errorf("the accepted socket has a tag: %v", err)
		}
		c.Abort()
		s.Abort()
	})
	c, err = dialed(t, l, DialOptions{Addr: addrPortOf(t, addr), Tag: &want, Tags: &TagMap{fd: int(os.Stdin.Fd())}})
	if err == nil || c != nil {
		t.Error("a socket that could not be marked was connected")
	}
}

func bpf(cmd uintptr, attr []byte) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_BPF, cmd, uintptr(unsafe.Pointer(&attr[0])), uintptr(len(attr)))
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// storageMap makes a socket storage with 20-byte values; the kernel insists on a type description (btf(7)).
func storageMap() (*os.File, error) {
	le := binary.LittleEndian
	names := "\x00int\x00tag\x00b\x00"
	types := []uint32{
		1, 1 << 24, 4, 32, // [1] int, 4 bytes, 32 bits
		5, 4<<24 | 1, 20, 9, 2, 0, // [2] struct tag of 20 bytes { b at 0, type 3 }, filled in below
		0, 3 << 24, 0, 1, 1, 5, // [3] array of 5 [1]
	}
	types[7], types[8] = 9, 3
	var t []byte
	for _, v := range types {
		t = le.AppendUint32(t, v)
	}
	hdr := le.AppendUint16(nil, 0xeb9f)
	hdr = append(hdr, 1, 0)
	for _, v := range []int{24, 0, len(t), len(t), len(names)} {
		hdr = le.AppendUint32(hdr, uint32(v))
	}
	blob := append(append(hdr, t...), names...)
	attr := make([]byte, 28)
	le.PutUint64(attr, uint64(uintptr(unsafe.Pointer(&blob[0]))))
	le.PutUint32(attr[16:], uint32(len(blob)))
	btf, err := bpf(unix.BPF_BTF_LOAD, attr)
	runtime.KeepAlive(blob)
	if err != nil {
		return nil, fmt.Errorf("load type description: %w", err)
	}
	defer unix.Close(btf)
	attr = make([]byte, 72)
	for i, v := range []uint32{unix.BPF_MAP_TYPE_SK_STORAGE, 4, 20, 0, unix.BPF_F_NO_PREALLOC} {
		le.PutUint32(attr[4*i:], v)
	}
	le.PutUint32(attr[48:], uint32(btf))
	le.PutUint32(attr[52:], 1)
	le.PutUint32(attr[56:], 2)
	fd, err := bpf(unix.BPF_MAP_CREATE, attr)
	if err != nil {
		return nil, fmt.Errorf("create socket storage: %w", err)
	}
	return os.NewFile(uintptr(fd), "tags"), nil
}

func lookupTag(m *os.File, fd int, tag *kernel.SockTag) error {
	key := uint32(fd)
	attr := make([]byte, 32)
	rc, err := m.SyscallConn()
	if err != nil {
		return err
	}
	_ = rc.Control(func(mfd uintptr) { binary.LittleEndian.PutUint32(attr, uint32(mfd)) })
	binary.LittleEndian.PutUint64(attr[8:], uint64(uintptr(unsafe.Pointer(&key))))
	binary.LittleEndian.PutUint64(attr[16:], uint64(uintptr(unsafe.Pointer(tag))))
	_, err = bpf(unix.BPF_MAP_LOOKUP_ELEM, attr)
	runtime.KeepAlive(tag)
	return err
}

// TestRelay sends 64 MiB both ways at once through two Conns, to and from peers that read slowly.
func TestRelay(t *testing.T) {
	l := start(t)
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	most := 0
	closed := make(chan error, 2)
	addr := serve(t, l, func(a *Conn) {
		Dial(l, DialOptions{Addr: addrPortOf(t, backend.Addr().String())}, func(b *Conn, err error) {
			if err != nil {
				t.Error(err)
				return
			}
			join(a, b, &most, func(err error) { closed <- err })
		})
	})
	exchange(t, func() (net.Conn, error) { return net.Dial("tcp", addr) }, backend.Accept)
	for range 2 {
		if err := recv(t, closed); err != nil {
			t.Errorf("Closed(%v)", err)
		}
	}
	checkBacklog(t, most)
}
