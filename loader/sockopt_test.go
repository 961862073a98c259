package loader

import (
	"net/netip"
	"syscall"
	"testing"
	"unsafe"

	"conduit.io/conduit/api/kernel"

	"golang.org/x/sys/unix"
)

// markAfter connects to dst in the pod, sets another mark, and returns the one that the socket then has.
func (p *testPod) markAfter(t *testing.T, s socket, dst netip.AddrPort) (mark int) {
	t.Helper()
	err := p.try(func() error {
		fd, err := s.open(dst)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := s.start(fd, dst); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x333); err != nil {
			return err
		}
		if mark, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err != nil {
			return err
		}
		_, err = readAnswer(fd)
		return err
	})
	if err != nil {
		t.Errorf("to %v: %v", dst, err)
	}
	return mark
}

// A steered socket keeps its mark, whatever the application sets; any other socket takes what it is given.
func TestMarkStays(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	a.serve(":8081", "own", nil)
	b.serve(":8080", "app", nil)
	dst4, dst6 := netip.AddrPortFrom(b.v4, 8080), netip.AddrPortFrom(b.v6, 8080)
	if got := a.markAfter(t, socket{}, dst4); got != 0x333 {
		t.Errorf("in a pod that is not enrolled: mark %#x", got)
	}
	a.enrol(false, false)
	for name, c := range map[string]struct {
		s   socket
		dst netip.AddrPort
	}{
		"v4": {socket{}, dst4}, "v6": {socket{}, dst6}, "v4-mapped": {socket{mapped: true}, dst4},
	} {
		if got := a.markAfter(t, c.s, c.dst); got != kernel.Mark {
			t.Errorf("%s: mark %#x of a steered socket, want %#x", name, got, kernel.Mark)
		}
	}
	// The mark that counts is that of the subflow, which getsockopt does not tell: the socket's own must not change.
	if got := a.markAfter(t, socket{protocol: unix.IPPROTO_MPTCP}, dst4); got == 0x333 {
		t.Errorf("MPTCP: mark %#x", got)
	}
	if got := a.markAfter(t, socket{}, netip.AddrPortFrom(a.v4, 8081)); got != 0x333 {
		t.Errorf("of a connection inside the pod: mark %#x", got)
	}
	if err := d.Unenrol(a.cookie); err != nil {
		t.Fatal(err)
	}
	if got := a.markAfter(t, socket{}, dst4); got != 0x333 {
		t.Errorf("in a pod that has left: mark %#x", got)
	}
}

// Options that are larger than the kernel shows to programs go through as ever, such as those that iptables sets.
func TestLargeOptionsPass(t *testing.T) {
	open(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var large [4 << 12]byte
	large[0] = 1
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE,
		uintptr(unsafe.Pointer(&large)), uintptr(len(large)), 0)
	if errno != syscall.Errno(0) {
		t.Fatalf("setsockopt with %d bytes: %v", len(large), errno)
	}
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || on != 1 {
		t.Errorf("it did not take effect: %d, %v", on, err)
	}
}
