package sock

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel tells how long a connection waited for a loop that was busy, also when its client has sent something
// meanwhile.
func TestQueued(t *testing.T) {
	const busy, tick = 60 * time.Millisecond, 10 * time.Millisecond
	l := start(t)
	queued := make(chan time.Duration, 1)
	addr := serve(t, l, func(c *Conn) {
		queued <- c.Queued()
		c.Abort()
	})
	do(t, l, func() {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { c.Close() })
		<-time.After(busy / 2)
		if _, err := c.Write([]byte("hello?")); err != nil {
			t.Error(err)
		}
		<-time.After(busy / 2)
	})
	if got := recv(t, queued); got < busy-tick {
		t.Errorf("waited %v, the kernel says %v", busy, got)
	}
}

func TestQueuedIsForTCP(t *testing.T) {
	l := start(t)
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[1])
	do(t, l, func() {
		c, err := NewConn(l, p[0])
		if err != nil {
			t.Error(err)
			return
		}
		if got := c.Queued(); got >= 0 {
			t.Errorf("a socket without a handshake waited %v", got)
		}
		c.Abort()
	})
}
