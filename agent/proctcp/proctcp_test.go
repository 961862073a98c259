package proctcp

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

func TestRead(t *testing.T) {
	file := head +
		"   0: 0100007F:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n" +
		"   1: B80D0120000000000000000001000000:0016 00000000000000000000000000000000:0000 01 00000000:00000000 00:00000000 00000000 0 0 7 1 0\n"
	want := []Socket{{netip.MustParseAddrPort("127.0.0.1:10250"), Listens, 4711}, {netip.MustParseAddrPort("[2001:db8::1]:22"), 1, 7}}
	for n := 1; n <= 2; n++ { // as many as are wanted
		var got []Socket
		err := Read(strings.NewReader(file), func(s Socket) bool { got = append(got, s); return len(got) < n })
		if err != nil || !slices.Equal(got, want[:n]) {
			t.Errorf("%v, %v; want %v", got, err, want[:n])
		}
	}
	for _, bad := range []string{"   0: 0100007F:280A 00000000:0000 0A\n", "   0: 0100:280A 0:0 0A 0 0 0 0 0 7 1\n", "   0: 0100007F:28 0A 0A 0 0 0 0 0 x 1\n", "   0: 0100007F:28 0A XX 0 0 0 0 0 1 1\n"} {
		if err := Read(strings.NewReader(head+bad), func(Socket) bool { return true }); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// TestEach finds a socket of this process in the kernel's list.
func TestEach(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	found := false
	err = Each(func(s Socket) bool {
		found = found || s.State == Listens && s.Local.String() == l.Addr().String()
		return true
	})
	if err != nil || !found {
		t.Errorf("found: %v, %v", found, err)
	}
}
