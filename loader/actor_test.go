package loader

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// actorEnv makes the test binary an actor: a process of its own that does what it reads, and says one line about each thing.
const actorEnv = "CDT_LOADER_TEST_ACTOR"

// actor is such a process, in the network namespace of a test pod.
type actor struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	said *bufio.Reader
}

func (p *testPod) actor() *actor {
	p.t.Helper()
	a := &actor{t: p.t, cmd: exec.Command("/proc/self/exe")}
	a.cmd.Env = append(os.Environ(), actorEnv+"=1")
	a.cmd.Stderr = os.Stderr
	in, err := a.cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	a.in, a.said = in, bufio.NewReader(out)
	p.inside(a.cmd.Start) // the child is where the thread is
	p.t.Cleanup(func() { a.in.Close(); a.cmd.Wait() })
	return a
}

// do has the actor do something, and returns what it says.
func (a *actor) do(what string, args ...any) string {
	a.t.Helper()
	fmt.Fprintln(a.in, append([]any{what}, args...)...)
	line, err := a.said.ReadString('\n')
	if err != nil {
		a.t.Fatalf("the actor that should %s %v: %v", what, args, err)
	}
	return strings.TrimSpace(line)
}

// dial is who answers the actor at dst, and from where it dialled; port 0 is any.
func (a *actor) dial(dst netip.AddrPort, port uint16) (answer, error) {
	a.t.Helper()
	return parseAnswer(a.do("dial", dst, port))
}

// act is the life of an actor.
func act() int {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		f := strings.Fields(in.Text())
		said, err := perform(f[0], f[1:])
		if err != nil {
			said = "error: " + err.Error()
		}
		fmt.Println(strings.TrimSpace(said))
	}
	return 0
}

func perform(what string, args []string) (string, error) {
	var dst netip.AddrPort
	if len(args) > 0 {
		dst, _ = netip.ParseAddrPort(args[0])
	}
	switch what {
	case "serve": // ADDR: accept for ever
		return "serving", actorServe(args[0])
	case "dial": // ADDR PORT
		return actorDial(-1, dst, args[1])
	case "reuse": // ADDR: with the socket that is descriptor 3
		return actorDial(3, dst, "0")
	case "child": // WORDS...: a child of another program does it
		return actorChild(nil, args)
	case "lend": // ADDR CLOSED: connect a socket to CLOSED in vain, and let a child connect it to ADDR
		fd, err := socket{}.open(dst)
		if err != nil {
			return "", err
		}
		if err := (socket{}).start(fd, netip.MustParseAddrPort(args[1])); err == nil {
			return "", fmt.Errorf("%s is not closed", args[1])
		}
		return actorChild(os.NewFile(uintptr(fd), "lent"), []string{"reuse", args[0]})
	case "exec": // become another program: this one again
		fmt.Println("executing")
		return "", syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	case "hold": // ADDR: connect, and leave it at that
		fd, err := socket{}.open(dst)
		if err != nil {
			return "", err
		}
		return converse(fd, socket{}, dst)
	case "mapped": // ADDR: from an AF_INET6 socket
		return connectOnce(socket{mapped: true}, dst)
	case "within": // NETNS ADDR PORT
		return actorWithin(args[0], args[1], args[2])
	}
	return "", fmt.Errorf("unknown: %s", what)
}

func actorServe(addr string) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}()
	return nil
}

func connectOnce(s socket, dst netip.AddrPort) (string, error) {
	fd, err := s.open(dst)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return converse(fd, s, dst)
}

func converse(fd int, s socket, dst netip.AddrPort) (string, error) {
	if err := s.start(fd, dst); err != nil {
		return "", err
	}
	var b [256]byte
	n, err := unix.Read(fd, b[:])
	return string(b[:n]), err
}

// actorDial dials from a port, with the descriptor or one of its own, and resets the connection at the end: the port is
// free at once.
func actorDial(fd int, dst netip.AddrPort, port string) (string, error) {
	var from uint16
	if _, err := fmt.Sscan(port, &from); err != nil {
		return "", err
	}
	if fd < 0 {
		var err error
		if fd, err = (socket{}).open(dst); err != nil {
			return "", err
		}
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return "", err
	}
	if from != 0 {
		any := netip.IPv4Unspecified()
		if dst.Addr().Is6() {
			any = netip.IPv6Unspecified()
		}
		if err := unix.Bind(fd, socket{}.sockaddr(netip.AddrPortFrom(any, from))); err != nil {
			return "", err
		}
	}
	return converse(fd, socket{}, dst)
}

func actorChild(file *os.File, words []string) (string, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = os.Environ()
	cmd.Stdin, cmd.Stderr = strings.NewReader(strings.Join(words, " ")+"\n"), os.Stderr
	if file != nil {
		defer file.Close()
		cmd.ExtraFiles = []*os.File{file}
	}
	out, err := cmd.Output()
	return string(out), err
}

func actorWithin(path, addr, port string) (string, error) {
	ns, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer ns.Close()
	var said string
	err = Inside(ns, func() (err error) {
		said, err = actorDial(-1, netip.MustParseAddrPort(addr), port)
		return err
	})
	return said, err
}
