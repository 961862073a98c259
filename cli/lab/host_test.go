package lab

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
)

func TestFindMount(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:40 /sub /mnt/part rw,relatime shared:7 master:1 - cgroup2 cgroup2 rw
41 31 0:38 / /sys/fs/cgroup\040two rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
42 31 0:39 / /later rw - cgroup2 cgroup2 rw
`
	for _, tc := range []struct{ name, mounts, fstype, want string }{
		{"hybrid, partial and escaped", hybrid, "cgroup2", "/sys/fs/cgroup two"},
		{"unified", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n", "cgroup2", "/sys/fs/cgroup"},
		{"type is not a prefix", hybrid, "cgroup", "/sys/fs/cgroup/memory"},
		{"none", "1 1 0:1 / / rw - ext4 /dev/root rw\n", "cgroup2", ""},
		{"garbage", "cgroup2\n - cgroup2\n\n", "cgroup2", ""},
	} {
		got, err := findMount(strings.NewReader(tc.mounts), tc.fstype)
		if err != nil || got != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.name, got, err, tc.want)
		}
	}
}

// segment builds an IP packet with a TCP header of 20 bytes and options.
func segment(src, dst netip.AddrPort, options, payload string) []byte {
	tcp := make([]byte, 20, 20+len(options)+len(payload))
	binary.BigEndian.PutUint16(tcp, src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	tcp[12] = byte(5+len(options)/4) << 4
	tcp = append(append(tcp, options...), payload...)
	if src.Addr().Is4() {
		ip := make([]byte, 20)
		ip[0], ip[9] = 0x45, 6
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)))
		copy(ip[12:], src.Addr().AsSlice())
		copy(ip[16:], dst.Addr().AsSlice())
		return append(ip, tcp...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6] = 0x60, 6
	binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
	copy(ip[8:], src.Addr().AsSlice())
	copy(ip[24:], dst.Addr().AsSlice())
	return append(ip, tcp...)
}

func TestParseTCP(t *testing.T) {
	v4 := [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1234"), netip.MustParseAddrPort("192.0.2.2:80")}
	v6 := [2]netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:1234"), netip.MustParseAddrPort("[2001:db8::2]:80")}
	udp := segment(v4[0], v4[1], "", "x")
	udp[9] = 17
	short := segment(v4[0], v4[1], "", "")[:30]
	badOffset := segment(v4[0], v4[1], "", "")
	badOffset[32] = 0xf0
	for _, tc := range []struct {
		name    string
		packet  []byte
		flow    Flow
		payload string
		ok      bool
	}{
		{"IPv4", segment(v4[0], v4[1], "", "hello"), Flow{v4[0], v4[1]}, "hello", true},
		{"IPv4 with options", segment(v4[0], v4[1], "\x01\x01\x01\x01", "hello"), Flow{v4[0], v4[1]}, "hello", true},
		{"IPv4 with Ethernet padding", append(segment(v4[0], v4[1], "", ""), make([]byte, 6)...), Flow{v4[0], v4[1]}, "", true},
		{"IPv6", segment(v6[0], v6[1], "\x01\x01\x01\x01", "hello"), Flow{v6[0], v6[1]}, "hello", true},
		{"UDP", udp, Flow{}, "", false},
		{"cut in the header", short, Flow{}, "", false},
		{"offset past the end", badOffset, Flow{}, "", false},
		{"empty", nil, Flow{}, "", false},
	} {
		flow, payload, ok := parseTCP(tc.packet)
		if ok != tc.ok || flow != tc.flow || string(payload) != tc.payload {
			t.Errorf("%s: %v %q %v, want %v %q %v", tc.name, flow, payload, ok, tc.flow, tc.payload, tc.ok)
		}
	}
}
