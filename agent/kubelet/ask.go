package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"conduit.io/conduit/loader"

	"golang.org/x/sys/unix"
)

const (
	answerTimeout = 5 * time.Second
	answerPoll    = 10 * time.Millisecond
)

// acceptor asks the kernel who accepts a connection to addr, an address of the node itself.
func acceptor(ctx context.Context, k Kernel, cookie uint64, addr netip.AddrPort) (loader.Acceptor, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	d := net.Dialer{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		if cerr := rc.Control(func(fd uintptr) { err = ask(k, cookie, int(fd), addr) }); cerr != nil {
			return cerr
		}
		return err
	}}
	d.SetMultipathTCP(false) // so that the accepted socket is TCP's
	c, err := d.DialContext(ctx, "tcp", addr.String())
	defer k.AskAcceptor(cookie, netip.AddrPort{}, netip.AddrPort{}) //nolint:errcheck // the next question takes its place
	if err != nil {
		return loader.Acceptor{}, err
	}
	defer c.Close()
	// A handshake, so that the kubelet does not log a connection without one. Nothing is sent, and nothing believed: who
	// accepts is the kernel's word. Whatever else may serve the port need not speak TLS.
	_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
	return answer(ctx, k)
}

// ask binds the socket, so that its address is known before it connects, and asks about the connection that will be.
func ask(k Kernel, cookie uint64, fd int, to netip.AddrPort) error {
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(to.Addr(), 0))); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	var port int
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		port = sa.Port
	case *unix.SockaddrInet6:
		port = sa.Port
	}
	return k.AskAcceptor(cookie, netip.AddrPortFrom(to.Addr(), uint16(port)), to)
}

// answer waits for the answer. A TLS server has accepted before its handshake ended; others soon will.
func answer(ctx context.Context, k Kernel) (loader.Acceptor, error) {
	tick := time.NewTicker(answerPoll)
	defer tick.Stop()
	for {
		a, ok, err := k.Acceptor()
		if ok || err != nil {
			return a, err
		}
		select {
		case <-ctx.Done():
			return a, errors.New("nobody has accepted the connection")
		case <-tick.C:
		}
	}
}

// self asks who accepts at a listener of the agent's own: what the kernel says of the agent.
func self(ctx context.Context, k Kernel, cookie uint64) (loader.Acceptor, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var l net.Listener
	var err error
	for _, loopback := range []string{"127.0.0.1:0", "[::1]:0"} {
		if l, err = lc.Listen(ctx, "tcp", loopback); err == nil {
			break
		}
	}
	if err != nil {
		return loader.Acceptor{}, err
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
	}()
	return acceptor(ctx, k, cookie, l.Addr().(*net.TCPAddr).AddrPort())
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
