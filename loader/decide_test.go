package loader

import (
	"net"
	"net/netip"
	"testing"

	"conduit.io/conduit/api/kernel"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// skLookup is struct bpf_sk_lookup (linux/bpf.h), the context of the lookup program.
type skLookup struct {
	Socket     uint64 // out: cookie of the socket chosen
	Family     uint32
	Protocol   uint32
	RemoteIP4  [4]byte
	RemoteIP6  [16]byte
	RemotePort uint16 // network order
	_          uint16
	LocalIP4   [4]byte
	LocalIP6   [16]byte
	LocalPort  uint32
	Ifindex    uint32 // must be 0 in a test run
	_          uint32
}

func syn(src, dst string, protocol uint32) skLookup {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	c := skLookup{Family: unix.AF_INET6, Protocol: protocol, RemotePort: 0x3930, LocalPort: 8080}
	if s.Is4() {
		c.Family, c.RemoteIP4, c.LocalIP4 = unix.AF_INET, s.As4(), d.As4()
		return c
	}
	c.RemoteIP6, c.LocalIP6 = s.As16(), d.As16()
	return c
}

const (
	drop, pass = 0, 1
	none       = -1
	inV4, inV6 = int(kernel.SlotInV4), int(kernel.SlotInV6)
	oV4, oV6   = int(kernel.SlotOutV4), int(kernel.SlotOutV6)
	enrolled   = kernel.PodFlag(0)
	left       = kernel.PodFlagLeft
)

// The pod has eight addresses, among them 192.0.2.2, 2001:db8::2 and, as the last, 2001:db8::8.
var decisions = []struct {
	name     string
	src, dst string
	flags    kernel.PodFlag
	verdict  int
	slot     int // chosen while the proxy is alive
	down     int // verdict while none is
}{
	{"outbound v4", "192.0.2.2", "198.51.100.1", enrolled, pass, oV4, drop},
	{"outbound v6", "2001:db8::2", "2001:db8:9::1", enrolled, pass, oV6, drop},
	{"outbound from loopback", "127.0.0.1", "198.51.100.1", enrolled, pass, oV4, drop},
	{"outbound, open", "192.0.2.2", "198.51.100.1", kernel.PodFlagOutOpen | kernel.PodFlagInOpen, pass, oV4, drop},
	{"outbound, left", "192.0.2.2", "198.51.100.1", left, drop, none, drop},
	{"outbound v6, left", "2001:db8::2", "2001:db8:9::1", left, drop, none, drop},
	{"inbound v4", "198.51.100.1", "192.0.2.2", enrolled, pass, inV4, drop},
	{"inbound v6", "2001:db8:9::1", "2001:db8::2", enrolled, pass, inV6, drop},
	{"inbound to the eighth address", "2001:db8:9::1", "2001:db8::8", enrolled, pass, inV6, drop},
	{"inbound v4, open", "198.51.100.1", "192.0.2.2", kernel.PodFlagInOpen, pass, inV4, pass},
	{"inbound v4, only outbound open", "198.51.100.1", "192.0.2.2", kernel.PodFlagOutOpen, pass, inV4, drop},
	{"inbound, left", "198.51.100.1", "192.0.2.2", left, pass, none, pass},
	{"to itself v4", "192.0.2.2", "192.0.2.2", enrolled, pass, none, pass},
	{"to itself v6", "2001:db8::2", "2001:db8::2", enrolled, pass, none, pass},
	{"between own addresses", "2001:db8::8", "2001:db8::2", enrolled, pass, none, pass},
	{"loopback v4", "127.0.0.1", "127.0.0.1", enrolled, pass, none, pass},
	{"loopback v6", "::1", "::1", enrolled, pass, none, pass},
	{"own to loopback", "192.0.2.2", "127.1.2.3", enrolled, pass, none, pass},
	{"link-local neighbour", "fe80::99", "2001:db8::2", enrolled, pass, inV6, drop},
	{"link-local neighbour to link-local", "fe80::99", "fe80::2", enrolled, pass, inV6, drop},
	{"link-local v4 neighbour", "169.254.1.1", "192.0.2.2", enrolled, pass, inV4, drop},
	{"to or from an address not told of", "198.51.100.1", "198.51.100.9", enrolled, drop, none, drop},
	{"to or from an address not told of, open", "198.51.100.1", "198.51.100.9", kernel.PodFlagOutOpen | kernel.PodFlagInOpen, drop, none, drop},
	{"to or from an address not told of, left", "198.51.100.1", "198.51.100.9", left, pass, none, pass},
	{"own link-local to elsewhere", "fe80::2", "2001:db8:9::1", enrolled, drop, none, drop},
	{"to itself at an address not told of", "198.51.100.9", "198.51.100.9", enrolled, pass, none, pass},
	{"own link-local", "fe80::2", "fe80::2", enrolled, pass, none, pass},
}

// Every decision of the lookup program, by test run.
func TestLookupDecides(t *testing.T) {
	const cookie = 1 << 40 // of no namespace
	d := open(t)
	prog, err := d.lookupProgram(cookie)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	for _, c := range decisions {
		t.Run(c.name, func(t *testing.T) {
			if err := d.maps["cdt_pods"].Put(uint64(cookie), eightAddresses(t, c.flags)); err != nil {
				t.Fatal(err)
			}
			verdict, _ := runLookup(t, prog, syn(c.src, c.dst, unix.IPPROTO_TCP))
			if verdict != c.down {
				t.Errorf("no proxy: verdict %d, want %d", verdict, c.down)
			}
			sockets, closeAll := fillSlots(t, d, cookie)
			defer closeAll()
			verdict, socket := runLookup(t, prog, syn(c.src, c.dst, unix.IPPROTO_TCP))
			var want uint64
			if c.slot != none {
				want = sockets[c.slot]
			}
			if verdict != c.verdict || socket != want {
				t.Errorf("verdict %d, socket %d; want %d, %d", verdict, socket, c.verdict, want)
			}
			if verdict, socket := runLookup(t, prog, syn(c.src, c.dst, unix.IPPROTO_UDP)); verdict != pass || socket != 0 {
				t.Errorf("UDP: verdict %d, socket %d", verdict, socket)
			}
		})
	}
}

func eightAddresses(t *testing.T, flags kernel.PodFlag) *kernel.Pod {
	t.Helper()
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	for len(addrs) < kernel.MaxAddrs-1 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{203, 0, 113, byte(len(addrs))}))
	}
	v, err := Pod{Addrs: append(addrs, netip.MustParseAddr("2001:db8::8"))}.encode()
	if err != nil {
		t.Fatal(err)
	}
	v.Flags = flags
	return &v
}

func runLookup(t *testing.T, prog *ebpf.Program, ctx skLookup) (verdict int, socket uint64) {
	t.Helper()
	out := ctx
	ret, err := prog.Run(&ebpf.RunOptions{Context: &ctx, ContextOut: &out})
	if err != nil {
		t.Fatal(err)
	}
	return int(ret), out.Socket
}

// fillSlots puts a listener into every slot, and returns their socket cookies.
func fillSlots(t *testing.T, d *Datapath, cookie uint64) (cookies [kernel.SlotCount]uint64, closeAll func()) {
	t.Helper()
	var ls []*net.TCPListener
	for slot := range cookies {
		network, addr := "tcp4", "127.0.0.1:0"
		if slot%2 == 1 {
			network, addr = "tcp6", "[::1]:0"
		}
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(t.Context(), network, addr)
		if err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l.(*net.TCPListener))
		control(t, l.(*net.TCPListener), func(fd int) error {
			if cookies[slot], err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
				return err
			}
			return d.SetListener(cookie, kernel.Slot(slot), fd)
		})
	}
	return cookies, func() {
		for _, l := range ls {
			l.Close()
		}
	}
}
