package testnet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// Listen opens a listener inside a pod, or fails the test; it is closed when the test ends.
func Listen(t testing.TB, p Pod, network, address string) net.Listener {
	t.Helper()
	l, err := p.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatalf("listen in %s: %v", p, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Echo runs a TCP server inside a pod, on all addresses, that sends back what it gets and half-closes when its
// client does. It returns the port.
func Echo(t testing.TB, p Pod, port uint16) uint16 {
	t.Helper()
	return Serve(t, p, port, func(c net.Conn) { io.Copy(c, c) })
}

// Serve runs a TCP server inside a pod, on all addresses; port 0 chooses one. Each connection gets handle in a
// goroutine and is closed when handle returns. The server and its connections end with the test.
func Serve(t testing.TB, p Pod, port uint16, handle func(net.Conn)) uint16 {
	t.Helper()
	l := Listen(t, p, "tcp", netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())
	ctx := t.Context()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
					t.Errorf("accept in %s: %v", p, err)
				}
				return
			}
			stop := context.AfterFunc(ctx, func() { c.Close() })
			go func() {
				defer stop()
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// Dial connects from inside a pod; the connection has a deadline of 10 seconds.
func Dial(ctx context.Context, from Pod, to netip.AddrPort) (*net.TCPConn, error) {
	within, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := from.DialContext(within, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(10 * time.Second))
}

// RoundTrip sends message over a new connection, half-closes it and returns everything that came back.
func RoundTrip(ctx context.Context, from Pod, to netip.AddrPort, message []byte) ([]byte, error) {
	c, err := Dial(ctx, from, to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write(message); err != nil {
		return nil, err
	}
	if err := c.CloseWrite(); err != nil {
		return nil, err
	}
	return io.ReadAll(c)
}
