package machine

import (
	"fmt"
	"io"
	"net"
	"time"

	"github.com/vishvananda/netlink"
)

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set up lo: %w", err)
	}
	return nil
}

// forward passes each connection that the host's listener accepts on to an address inside. The listener is in the
// host's network namespace, where it was made, and this process is not.
func forward(l net.Listener, to string) {
	for {
		from, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer from.Close()
			inside, err := net.DialTimeout("tcp", to, 5*time.Second)
			if err != nil {
				return
			}
			defer inside.Close()
			go pass(from, inside)
			pass(inside, from)
		}()
	}
}

// pass copies until the end, and passes the end on.
func pass(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return
	}
	if tcp, ok := to.(*net.TCPConn); ok {
		tcp.CloseWrite() //nolint:errcheck // the peer has gone already
	}
}
