package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// secret is in everything that the enrolled clients of TestNothingEscapes say, and nowhere else.
const secret = "enrolled-pods-say-this"

// trick is a way to make a connection that a mesh might not notice.
type trick struct {
	name   string
	proto  int
	mapped bool // to IPv4 by an IPv6 socket
	// prepare is called before the connection is made.
	prepare func(s *rawSocket, p testnet.Pod, to netip.AddrPort) error
	// connect makes the connection; nil for a blocking connect(2). It may say the token on the way, and reports it.
	connect func(s *rawSocket, to netip.AddrPort, token string) (said bool, err error)
	// after is called when the connection has proven itself; then it must do so again.
	after func(s *rawSocket, p testnet.Pod, to netip.AddrPort) error
	// loopback: the client's address is not the pod's, so the server does not see what getsockname says.
	loopback bool
	early    bool // the SYN carries data, if the kernel may
	refused  bool // the mesh may refuse it; the rest holds nevertheless
}

// outsiderSays is in what a pod outside the mesh says.
const outsiderSays = "the-outsider-says-this"

const (
	trickTimeout = 10 * time.Second
	patience     = 250 * time.Millisecond // with what may be refused
)

func setting(level, option, value int) func(*rawSocket, testnet.Pod, netip.AddrPort) error {
	return func(s *rawSocket, _ testnet.Pod, _ netip.AddrPort) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.fd, level, option, value))
	}
}

func device(name string) func(*rawSocket, testnet.Pod, netip.AddrPort) error {
	return func(s *rawSocket, _ testnet.Pod, _ netip.AddrPort) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptString(s.fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, name))
	}
}

func bindPod(s *rawSocket, p testnet.Pod, to netip.AddrPort) error {
	ip := p.IP(lab.IPv6)
	if to.Addr().Is4() {
		ip = p.IP(lab.IPv4)
	}
	return s.bind(netip.AddrPortFrom(ip, 0))
}

func bindLoopback(s *rawSocket, _ testnet.Pod, to netip.AddrPort) error {
	if to.Addr().Is4() {
		return s.bind(netip.MustParseAddrPort("127.0.0.1:0"))
	}
	return s.bind(netip.MustParseAddrPort("[::1]:0"))
}

func all(fs ...func(*rawSocket, testnet.Pod, netip.AddrPort) error) func(*rawSocket, testnet.Pod, netip.AddrPort) error {
	return func(s *rawSocket, p testnet.Pod, to netip.AddrPort) error {
		for _, f := range fs {
			if err := f(s, p, to); err != nil {
				return err
			}
		}
		return nil
	}
}

// reused connects the socket to a port of its own pod first, which the mesh leaves alone, and dissolves that.
func reused(s *rawSocket, p testnet.Pod, to netip.AddrPort) error {
	ip := p.IP(lab.IPv6)
	if to.Addr().Is4() {
		ip = p.IP(lab.IPv4)
	}
	if err := unix.Connect(s.fd, s.sockaddr(netip.AddrPortFrom(ip, ownPort))); err != nil {
		return os.NewSyscallError("connect to the pod itself", err)
	}
	var unspecified [16]byte // AF_UNSPEC dissolves an association: connect(2)
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&unspecified)), 16); errno != 0 {
		return os.NewSyscallError("disconnect", errno)
	}
	return nil
}

// bindLinkLocal binds to the address that every IPv6 interface has.
func bindLinkLocal(s *rawSocket, p testnet.Pod, to netip.AddrPort) error {
	if to.Addr().Is4() {
		return errNotApplicable
	}
	var addrs []netlink.Addr
	var index int
	if err := p.InNetns(func() error {
		link, err := netlink.LinkByName(p.IfName())
		if err != nil {
			return err
		}
		index = link.Attrs().Index
		addrs, err = netlink.AddrList(link, netlink.FAMILY_V6)
		return err
	}); err != nil {
		return err
	}
	for _, a := range addrs {
		if ip, _ := netip.AddrFromSlice(a.IP); ip.IsLinkLocalUnicast() {
			sa := &unix.SockaddrInet6{Addr: ip.As16(), ZoneId: uint32(index)}
			return os.NewSyscallError("bind", unix.Bind(s.fd, sa))
		}
	}
	return errors.New("eth0 has no link-local address")
}

// bindNew binds to an address that the pod has had for an instant, so that the agent does not know of it.
func bindNew(s *rawSocket, p testnet.Pod, to netip.AddrPort) error {
	own := sibling(p, to, 201)
	a := netlink.Addr{IPNet: netlink.NewIPNet(own.AsSlice()), Flags: unix.IFA_F_NODAD}
	if err := p.InNetns(func() error {
		link, err := netlink.LinkByName(p.IfName())
		if err != nil {
			return err
		}
		return netlink.AddrReplace(link, &a)
	}); err != nil {
		return err
	}
	return s.bind(netip.AddrPortFrom(own, 0))
}

// sibling is an address of the pod's subnet that nobody has.
func sibling(p testnet.Pod, to netip.AddrPort, last byte) netip.Addr {
	if to.Addr().Is4() {
		a := p.IP(lab.IPv4).As4()
		a[3] = last
		return netip.AddrFrom4(a)
	}
	a := p.IP(lab.IPv6).As16()
	a[14], a[15] = 2, last
	return netip.AddrFrom16(a)
}

// bindForeign binds to an address that the pod does not have.
func bindForeign(s *rawSocket, p testnet.Pod, to netip.AddrPort) error {
	level, option := unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT
	if to.Addr().Is4() {
		level, option = unix.IPPROTO_IP, unix.IP_TRANSPARENT
	}
	if err := unix.SetsockoptInt(s.fd, level, option, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	return s.bind(netip.AddrPortFrom(sibling(p, to, 202), 0))
}

// errNotApplicable: the trick does not exist for this address family.
var errNotApplicable = errors.New("not applicable")

// soon is connect(2) with little patience.
func soon(s *rawSocket, to netip.AddrPort, _ string) (bool, error) {
	if err := s.connectLater(to, patience); err != nil {
		return false, err
	}
	return false, s.await()
}

func later(s *rawSocket, to netip.AddrPort, _ string) (bool, error) {
	if err := s.connectLater(to, trickTimeout); err != nil {
		return false, err
	}
	return false, s.await()
}

// fastOpen is sendto(2) with MSG_FASTOPEN: connect and write in one.
func fastOpen(s *rawSocket, to netip.AddrPort, token string) (bool, error) {
	return fastOpenWithin(s, to, token, trickTimeout)
}

func fastOpenSoon(s *rawSocket, to netip.AddrPort, token string) (bool, error) {
	return fastOpenWithin(s, to, token, patience)
}

func fastOpenWithin(s *rawSocket, to netip.AddrPort, token string, timeout time.Duration) (bool, error) {
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return false, err
	}
	send := func() error { return unix.Sendto(s.fd, []byte(token+"\n"), unix.MSG_FASTOPEN, s.sockaddr(to)) }
	if err := undisturbed(send); err != nil {
		return false, os.NewSyscallError("sendto", err)
	}
	return true, s.begun(timeout)
}

var tricks = []trick{
	{name: "plain"},
	{name: "non-blocking", connect: later},
	{name: "v4-mapped", mapped: true},
	{name: "v4-mapped non-blocking", mapped: true, connect: later},
	{name: "mptcp", proto: unix.IPPROTO_MPTCP},
	{name: "mptcp v4-mapped", proto: unix.IPPROTO_MPTCP, mapped: true},
	{name: "mptcp fast open", proto: unix.IPPROTO_MPTCP, connect: fastOpen},
	{name: "fast open", connect: fastOpen, early: true},
	{name: "fast open again", connect: fastOpen, early: true},
	{name: "fast open connect", prepare: setting(unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1), connect: deferred, early: true},
	{name: "bound to eth0", prepare: device("eth0")},
	{name: "bound to eth0 fast open", prepare: device("eth0"), connect: fastOpen, early: true},
	{name: "bound to eth0 v4-mapped", mapped: true, prepare: device("eth0"), connect: later},
	{name: "mark", prepare: setting(unix.SOL_SOCKET, unix.SO_MARK, 0x111)},
	{name: "mark of the mesh", prepare: setting(unix.SOL_SOCKET, unix.SO_MARK, steerMark)},
	{name: "mark zero", prepare: setting(unix.SOL_SOCKET, unix.SO_MARK, 0)},
	{name: "bound to the pod address", prepare: bindPod},
	{name: "bound to loopback", prepare: bindLoopback, loopback: true},
	{name: "not routed", prepare: setting(unix.SOL_SOCKET, unix.SO_DONTROUTE, 1)},
	{name: "everything at once", prepare: all(bindPod, device("eth0"), setting(unix.SOL_SOCKET, unix.SO_MARK, 0x222)), connect: later},
	{name: "bound to eth0 afterwards", after: device("eth0")},
	{name: "not routed afterwards", after: setting(unix.SOL_SOCKET, unix.SO_DONTROUTE, 1)},
	{name: "priority afterwards", after: all(setting(unix.SOL_SOCKET, unix.SO_PRIORITY, 5), setting(unix.IPPROTO_IP, unix.IP_TOS, 0x10))},
	{name: "mark afterwards", after: setting(unix.SOL_SOCKET, unix.SO_MARK, 0x111)},
	{name: "mark zero afterwards", after: setting(unix.SOL_SOCKET, unix.SO_MARK, 0)},
	{name: "mark afterwards v4-mapped", mapped: true, after: setting(unix.SOL_SOCKET, unix.SO_MARK, 0x333)},
	{name: "mptcp mark afterwards", proto: unix.IPPROTO_MPTCP, after: setting(unix.SOL_SOCKET, unix.SO_MARK, 0x111)},
	{name: "bound to the link-local address", prepare: bindLinkLocal, connect: soon, refused: true},
	{name: "bound to a new address", prepare: bindNew, connect: soon, refused: true},
	{name: "bound to a foreign address", prepare: bindForeign, connect: soon, refused: true},
	{name: "bound to a foreign address fast open", prepare: bindForeign, connect: fastOpenSoon, refused: true},
	{name: "reused socket", prepare: reused},
	{name: "reused socket with mark", prepare: all(reused, setting(unix.SOL_SOCKET, unix.SO_MARK, 7)), connect: fastOpen},
}

// deferred connects with TCP_FASTOPEN_CONNECT: the SYN leaves with the first bytes that are written.
func deferred(s *rawSocket, to netip.AddrPort, token string) (bool, error) {
	if err := s.connectBlocking(to, trickTimeout); err != nil {
		return false, err
	}
	_, err := s.WriteString(token + "\n")
	return true, err
}

// ownPort is where the clients of TestNothingEscapes serve themselves.
const ownPort = 8200

// TestNothingEscapes connects in every way that is known to get round a mesh. Each connection must be steered, reach its
// server by mTLS, and show nothing of what it says on the wire between the nodes.
func TestNothingEscapes(t *testing.T) {
	s := newSteering(t)
	outsider := s.pods(t, resident{1, s.namespace(t, "plain", nil, nil), "outsider", lab.PodOptions{}, nil})[0]
	keen := s.keen(t)
	s.awaitServices(t)
	capture, err := s.capture()
	if err != nil {
		t.Fatal(err)
	}
	var far []course // declared to be no HTTP: every way to go, and one port of each
	spoken := 0      // connections that the outsider makes between the nodes
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		for _, c := range s.courses[family] {
			if c.local.Addr() == c.dial.Addr() { // the outsider knows no Services
				s.control(t, outsider, c)
				if c.name == "far" {
					spoken++
				}
			}
			if c.name == "far" && c.local.Port() == rawPort {
				far = append(far, c)
			}
		}
	}
	for _, p := range []testnet.Pod{s.client, keen} {
		witness(t, p, ownPort, false, "tcp")
		for _, k := range tricks {
			t.Run(p.Name()+"/"+k.name, func(t *testing.T) {
				for _, c := range far {
					if c.dial.Addr().Is4() || !k.mapped {
						s.try(t, p, &k, c)
					}
				}
			})
		}
	}
	if err := capture.Stop(); err != nil {
		t.Fatal(err)
	}
	if flows := capture.Find([]byte(secret)); len(flows) != 0 {
		t.Errorf("what enrolled pods said is on the wire: %v", flows)
	}
	if flows := capture.Find([]byte(outsiderSays)); len(flows) != 2*spoken || spoken == 0 {
		t.Errorf("what the outsider said is on the wire in %v, want both directions of %d connections", flows, spoken)
	}
	for _, p := range []testnet.Pod{s.client, s.near, s.far, keen} {
		wantNoFault(t, p)
	}
}

// keen is a client whose kernel sends data in the first SYN without having a cookie, and whose listeners accept that:
// those of the mesh too, for they are made after the setting.
func (s *steering) keen(t *testing.T) testnet.Pod {
	t.Helper()
	late := s.namespace(t, "late", nil, nil)
	p := s.pods(t, resident{1, late, "keen", lab.PodOptions{ServiceAccount: "keen"}, nil})[0]
	if err := p.InNetns(func() error {
		// ip-sysctl.rst: client, server, data without a cookie on either side, for every listener.
		return os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("1543"), 0) // 0x607
	}); err != nil {
		t.Fatal(err)
	}
	s.namespace(t, late, enrolledLabels, nil)
	testnet.Eventually(t, 15*time.Second, func(context.Context) error {
		if !slices.Contains(enrolled(t, s.node(1)), p.String()) {
			return errors.New("not enrolled yet")
		}
		return nil
	})
	return p
}

// control lets the outsider speak to a server.
func (s *steering) control(t *testing.T, from testnet.Pod, c course) {
	t.Helper()
	v := &visit{from: from, course: c, token: outsiderSays}
	if err := errors.Join(v.begin(netip.AddrPort{}), v.talk(), v.end()); err != nil {
		t.Errorf("outsider to %s: %v", c.dial, err)
	}
}

// try makes one connection of p, and looks at what became of it.
func (s *steering) try(t *testing.T, p testnet.Pod, k *trick, c course) {
	t.Helper()
	before, carried := steered(t, p, p), meshed(t, p)
	saw, local, err := k.do(t, p, c)
	if k.refused && err != nil {
		if n := meshed(t, p) - carried; n != 0 {
			t.Errorf("to %s: %v, but it was carried", c.dial, err)
		}
		return
	}
	want := sighting{name: c.name, accepted: local, peer: local, local: c.local, token: secret}
	if k.loopback || k.refused { // what the server is shown then is not the mesh's to say
		want.accepted, want.peer = saw.accepted, saw.peer
	}
	if err != nil || saw != want {
		t.Errorf("to %s: %v: server saw %v, want %v", c.dial, err, saw, want)
	}
	if n := steered(t, p, p) - before; n != 1 {
		t.Errorf("to %s: %v connections steered, want 1", c.dial, n)
	}
	if n := meshed(t, p) - carried; n != 1 {
		t.Errorf("to %s: %v connections carried by mTLS, want 1", c.dial, n)
	}
}

// meshed counts the connections of p that the proxy carried by mTLS.
func meshed(t *testing.T, p testnet.Pod) float64 {
	t.Helper()
	n, err := testnet.Metric(t.Context(), p, "tcp_open_total", `direction="outbound"`, `src="`+p.String()+`"`, `tls="mtls"`)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// do makes the connection, and says the secret.
func (k *trick) do(t *testing.T, p testnet.Pod, c course) (saw sighting, local netip.AddrPort, err error) {
	t.Helper()
	family := familyOf(c.dial.Addr())
	if k.mapped {
		family = unix.AF_INET6
	}
	s, err := newRawSocket(p, family, k.proto)
	if k.proto == unix.IPPROTO_MPTCP && (errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT)) {
		t.Skip("SKIPPED: this kernel has no MPTCP, or net.mptcp.enabled is 0: whether it escapes is not known")
	}
	if err != nil {
		return saw, local, err
	}
	defer s.Close()
	if k.prepare != nil {
		if err := k.prepare(s, p, c.dial); err != nil {
			return saw, local, err
		}
	}
	said := false
	if k.connect != nil {
		said, err = k.connect(s, c.dial, secret)
	} else {
		err = s.connectBlocking(c.dial, trickTimeout)
	}
	if k.proto == unix.IPPROTO_MPTCP && k.connect != nil && errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("SKIPPED: this kernel has no fast open for MPTCP, which came with Linux 6.2")
	}
	if err == nil && !said {
		_, err = s.WriteString(secret + "\n")
	}
	if err != nil {
		return saw, local, err
	}
	if saw, err = s.hear(); err != nil {
		return saw, local, err
	}
	if k.after != nil {
		if err = k.after(s, p, c.dial); err == nil {
			saw, err = s.ask(secret, false)
		}
		if err != nil {
			return saw, local, fmt.Errorf("afterwards: %w", err)
		}
	}
	local, peer, err := s.names()
	if err == nil && peer != c.dial {
		err = fmt.Errorf("getpeername says %s", peer)
	}
	return saw, local, errors.Join(err, k.wantEarly(s, p))
}

// wantEarly makes sure that fast open took place where the kernel was told to.
func (k *trick) wantEarly(s *rawSocket, p testnet.Pod) error {
	const optSynData = 32 // TCPI_OPT_SYN_DATA (include/uapi/linux/tcp.h): the SYN carried data, and was acknowledged
	if !k.early || p.Name() != "keen" {
		return nil
	}
	info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err == nil && info.Options&optSynData == 0 {
		err = errors.New("the SYN carried no data: the test does not show what it should")
	}
	return err
}
