package sock

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// control is the congestion control of a connection.
func control(t *testing.T, c *Conn) string {
	t.Helper()
	s, err := unix.GetsockoptString(c.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestNear: connections within the machine have reno, from the start; all others have what the machine is set to.
func TestNear(t *testing.T) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	usual := string(bytes.TrimSpace(b))
	l := start(t)
	for want, isNear := range map[string]bool{usual: false, "reno": true} {
		conns := make(chan *Conn, 1)
		s := server(t, l, func(c *Conn) { conns <- c })
		addr := ""
		do(t, l, func() {
			if isNear {
				s.Near()
			}
			addr = s.Addr().String()
		})
		c, err := dialed(t, l, DialOptions{Addr: addrPortOf(t, addr), Near: isNear})
		if err != nil {
			t.Fatal(err)
		}
		a := recv(t, conns)
		do(t, l, func() {
			if d, a := control(t, c), control(t, a); d != want || a != want {
				t.Errorf("near %v: dialled %s, accepted %s, want %s", isNear, d, a, want)
			}
			c.Abort()
			a.Abort()
		})
	}
}
