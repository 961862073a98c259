package kernel

import (
	"bytes"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"testing"
	"unsafe"

	"conduit.io/conduit/api/node"
)

// The proxy hands a SockTag to the kernel as bytes: its layout is fixed.
func TestSockTagLayout(t *testing.T) {
	tag := NewSockTag(KindVirtual, netip.MustParseAddrPort("192.0.2.9:8080"))
	if size := unsafe.Sizeof(tag); size != 20 {
		t.Fatalf("size is %d, want 20", size)
	}
	got := unsafe.Slice((*byte)(unsafe.Pointer(&tag)), 20)
	want := []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 9, 0x1f, 0x90, 2, 0} // little endian, as the objects
	if !bytes.Equal(got, want) {
		t.Errorf("bytes %v, want %v", got, want)
	}
}

func TestSockTagRoundTrip(t *testing.T) {
	for _, s := range []string{"192.0.2.9:1", "[2001:db8::9]:65535", "[::ffff:192.0.2.9]:80"} {
		ap := netip.MustParseAddrPort(s)
		want := netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		if got := NewSockTag(KindVirtual, ap).AddrPort(); got != want {
			t.Errorf("%v became %v", want, got)
		}
	}
	if tag := NewSockTag(KindProxy, netip.AddrPort{}); tag != (SockTag{Kind: KindProxy}) {
		t.Errorf("without an address: %v", tag)
	}
}

func TestSlotsEqualNodes(t *testing.T) {
	for _, c := range []struct {
		kernel Slot
		node   node.Slot
	}{
		{SlotInV4, node.InV4}, {SlotInV6, node.InV6}, {SlotOutV4, node.OutV4}, {SlotOutV6, node.OutV6}, {SlotCount, node.Slots},
	} {
		if uint32(c.kernel) != uint32(c.node) {
			t.Errorf("kernel slot %d is node slot %d", c.kernel, c.node)
		}
	}
}

func TestBypassNames(t *testing.T) {
	seen := map[string]bool{}
	for b := range Bypass(BypassCount) {
		name := b.String()
		if !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(name) || seen[name] {
			t.Errorf("reason %d is called %q", b, name)
		}
		seen[name] = true
	}
	if got := Bypass(BypassCount).String(); got != "unknown" {
		t.Errorf("a reason that is none is called %q", got)
	}
	if !BypassUnseen.Fault() || !BypassUnrouted.Fault() || BypassLocal.Fault() || BypassRefused.Fault() {
		t.Error("Fault is wrong")
	}
}

// BTF has no macros: what types.h defines by one is held against its twin here.
func TestConstantsEqualHeader(t *testing.T) {
	src, err := os.ReadFile("../../bpf/types.h")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{"CDT_MARK": Mark, "CDT_SCHEMA": Schema, "CDT_MAX_ADDRS": int64(MaxAddrs), "CDT_MAX_PROBES": int64(MaxProbes)} {
		m := regexp.MustCompile(`(?m)^#define ` + name + `\s+(\w+)$`).FindSubmatch(src)
		if m == nil {
			t.Errorf("%s is not in types.h", name)
			continue
		}
		if got, err := strconv.ParseInt(string(m[1]), 0, 64); err != nil || got != want {
			t.Errorf("%s is %s in C, %d in Go", name, m[1], want)
		}
	}
}
