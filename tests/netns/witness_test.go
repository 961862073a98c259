package netns_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"conduit.io/conduit/tests/testnet"
)

// sighting is what a witness saw of a connection.
type sighting struct {
	name     string         // of the pod that answered
	accepted netip.AddrPort // the client, as accept(2) named it
	peer     netip.AddrPort // the client, as getpeername(2) named it
	local    netip.AddrPort // where it arrived
	token    string         // what the client said
}

// String is what a witness answers, and parseSighting reads.
func (s sighting) String() string {
	return fmt.Sprintf("%s %s %s %s %s", s.name, s.accepted, s.peer, s.local, s.token)
}

func (s sighting) line() string { return s.String() + "\n" }

func parseSighting(line string) (s sighting, err error) {
	f := strings.Fields(line)
	if len(f) != 5 {
		return s, fmt.Errorf("a witness said %q", line)
	}
	s.name, s.token = f[0], f[4]
	for i, to := range []*netip.AddrPort{&s.accepted, &s.peer, &s.local} {
		if *to, err = netip.ParseAddrPort(f[i+1]); err != nil {
			return s, err
		}
	}
	return s, nil
}

// greeting is the token of a witness that speaks first.
const greeting = "greeting"

// witness serves, in p, connections on port: it answers every line with what it sees and that line. One that speaks
// first does so once before any line. Each network ("tcp": one socket for both families) gets a listener.
func witness(t testing.TB, p testnet.Pod, port uint16, first bool, networks ...string) {
	t.Helper()
	for _, network := range networks {
		address := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
		if network == "tcp4" {
			address = netip.AddrPortFrom(netip.IPv4Unspecified(), port)
		}
		l := testnet.Listen(t, p, network, address.String())
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("accept in %s: %v", p, err)
					}
					return
				}
				go testify(c.(*net.TCPConn), p.Name(), first)
			}
		}()
	}
}

// testify ends when the client does; every client of the tests has a deadline.
func testify(c *net.TCPConn, name string, first bool) {
	defer c.Close()
	saw := sighting{name: name, accepted: unmap(c.RemoteAddr()), local: unmap(c.LocalAddr())}
	rc, err := c.SyscallConn()
	if err != nil {
		return
	}
	rc.Control(func(fd uintptr) { saw.peer, _ = addrOf(unix.Getpeername(int(fd))) })
	if first {
		saw.token = greeting
		io.WriteString(c, saw.line())
	}
	for lines := bufio.NewScanner(c); lines.Scan(); {
		saw.token = lines.Text()
		if _, err := io.WriteString(c, saw.line()); err != nil {
			return
		}
	}
}

func unmap(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// addrOf takes the results of getsockname and getpeername.
func addrOf(sa unix.Sockaddr, err error) (netip.AddrPort, error) {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), err
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)), err
	}
	return netip.AddrPort{}, err
}

// rawSocket is a TCP socket of a pod that is made by system calls, so that a test can do to it what package net does not.
// Close closes it.
type rawSocket struct {
	*os.File // nil before the connection was begun
	fd       int
	family   int
	reader   *bufio.Reader
}

// newRawSocket makes a socket in p. proto is 0 for TCP, or unix.IPPROTO_MPTCP.
func newRawSocket(p testnet.Pod, family, proto int) (*rawSocket, error) {
	fd, err := p.Socket(family, unix.SOCK_STREAM, proto)
	return &rawSocket{family: family, fd: fd}, err
}

// sockaddr is a in the family of s: IPv4 in an IPv6 socket is v4-mapped.
func (s *rawSocket) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if s.family == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func (s *rawSocket) bind(a netip.AddrPort) error {
	return os.NewSyscallError("bind", unix.Bind(s.fd, s.sockaddr(a)))
}

// connectBlocking is connect(2) that returns with the connection made.
func (s *rawSocket) connectBlocking(to netip.AddrPort, timeout time.Duration) error {
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	if err := undisturbed(func() error { return unix.Connect(s.fd, s.sockaddr(to)) }); err != nil {
		return os.NewSyscallError("connect", err)
	}
	return s.begun(timeout)
}

// undisturbed makes a blocking call of a socket that has a timeout without the signals by which Go preempts: they end such
// a call with EINTR (signal(7)).
func undisturbed(call func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.Sigset_t
	preempt := unix.Sigset_t{Val: [16]uint64{1 << (unix.SIGURG - 1)}}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &preempt, &before); err != nil {
		return err
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	return call()
}

// connectLater begins a connection; await waits for it.
func (s *rawSocket) connectLater(to netip.AddrPort, timeout time.Duration) error {
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return err
	}
	if err := unix.Connect(s.fd, s.sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	return s.begun(timeout)
}

// begun makes the socket a File, with one deadline for everything that follows.
func (s *rawSocket) begun(timeout time.Duration) error {
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return err
	}
	s.File = os.NewFile(uintptr(s.fd), "socket")
	s.reader = bufio.NewReaderSize(s.File, 512)
	return s.SetDeadline(time.Now().Add(timeout))
}

// await waits until the connection is made.
func (s *rawSocket) await() error {
	rc, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var fail error
	err = rc.Write(func(fd uintptr) bool {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if fail = err; err == nil && errno != 0 {
			fail = os.NewSyscallError("connect", syscall.Errno(errno))
		}
		if fail != nil {
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	return errors.Join(err, fail)
}

// ask says token and returns what the witness at the other end sees.
func (s *rawSocket) ask(token string, first bool) (sighting, error) {
	if first {
		if saw, err := s.hear(); err != nil || saw.token != greeting {
			return saw, fmt.Errorf("witness that speaks first: %q, %w", saw.token, err)
		}
	}
	if _, err := s.WriteString(token + "\n"); err != nil {
		return sighting{}, err
	}
	return s.hear()
}

func (s *rawSocket) hear() (sighting, error) {
	line, err := s.reader.ReadString('\n')
	if err != nil {
		return sighting{}, fmt.Errorf("heard %q: %w", line, err)
	}
	return parseSighting(line)
}

// names are what getsockname(2) and getpeername(2) say.
func (s *rawSocket) names() (local, peer netip.AddrPort, err error) {
	local, lerr := addrOf(unix.Getsockname(s.fd))
	peer, perr := addrOf(unix.Getpeername(s.fd))
	return local, peer, errors.Join(lerr, perr)
}

// reset makes Close send RST.
func (s *rawSocket) reset() error {
	return unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

func (s *rawSocket) Close() error {
	if s.File == nil {
		return unix.Close(s.fd)
	}
	return s.File.Close()
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
