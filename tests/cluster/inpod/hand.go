package inpod

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"conduit.io/conduit/cli/lab"
)

// handEnv is set in a process that is a hand.
const handEnv = "CONDUIT_INPOD_HAND"

// hand is a process in the pod that makes sockets there: what a socket belongs to is decided when it is made. It is asked with the
// three numbers of socket(2), and answers with an error number and the socket.
type hand struct {
	mu   sync.Mutex
	conn *net.UnixConn
	cmd  *lab.Cmd
	said bytes.Buffer // on standard error
}

type question struct{ Family, Kind, Proto int32 }

// Main must be called first of all by the TestMain of a package whose tests enter pods: this program is its own hand. It returns in the
// process of the tests alone.
func Main() {
	if os.Getenv(handEnv) == "" {
		return
	}
	if err := serve(int(os.Stdin.Fd())); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve makes sockets until the tests have ended.
func serve(conn int) error {
	msg := make([]byte, 64)
	for {
		n, err := unix.Read(conn, msg)
		if err != nil || n == 0 {
			return os.NewSyscallError("read", err)
		}
		var q question
		if _, err := binary.Decode(msg[:n], binary.NativeEndian, &q); err != nil {
			return err
		}
		fd, err := unix.Socket(int(q.Family), int(q.Kind)|unix.SOCK_CLOEXEC, int(q.Proto))
		errno, rights := syscall.Errno(0), []byte(nil)
		if err == nil {
			rights = unix.UnixRights(fd)
		} else if !errors.As(err, &errno) {
			return err
		}
		err = unix.Sendmsg(conn, binary.NativeEndian.AppendUint32(nil, uint32(errno)), rights, nil, 0)
		if rights != nil {
			err = errors.Join(err, unix.Close(fd))
		}
		if err != nil {
			return os.NewSyscallError("answer", err)
		}
	}
}

func (p *Pod) startHand() (*hand, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "hand"), os.NewFile(uintptr(ends[1]), "hand")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err := errors.Join(err, ours.Close()); err != nil {
		return nil, err
	}
	h := &hand{conn: conn.(*net.UnixConn), cmd: p.Command(context.Background(), "/proc/self/exe")}
	h.cmd.Env = append(os.Environ(), handEnv+"=1")
	h.cmd.Stdin, h.cmd.Stderr = theirs, &h.said
	if err := h.cmd.Start(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return h, nil
}

// socket has a socket made.
func (h *hand) socket(family, kind, proto int) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ask, err := binary.Append(nil, binary.NativeEndian, question{int32(family), int32(kind), int32(proto)})
	if err != nil {
		return -1, err
	}
	if _, err := h.conn.Write(ask); err != nil {
		return -1, fmt.Errorf("ask for a socket: %w", err)
	}
	msg, rights := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	n, m, _, _, err := h.conn.ReadMsgUnix(msg, rights)
	if err != nil || n != len(msg) {
		return -1, fmt.Errorf("be given a socket: %d bytes, %w", n, err)
	}
	if errno := binary.NativeEndian.Uint32(msg); errno != 0 {
		return -1, os.NewSyscallError("socket", syscall.Errno(errno))
	}
	control, err := unix.ParseSocketControlMessage(rights[:m])
	if err != nil || len(control) != 1 {
		return -1, fmt.Errorf("be given a socket: %d control messages, %w", len(control), err)
	}
	fds, err := unix.ParseUnixRights(&control[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("be given a socket: %d descriptors, %w", len(fds), err)
	}
	return fds[0], nil
}

// stop ends the hand. It may have been killed, with its pod.
func (h *hand) stop() error {
	err := h.conn.Close()
	werr := h.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(werr, &exit) && exit.Sys().(syscall.WaitStatus).Signaled() {
		werr = nil
	}
	if werr != nil {
		werr = fmt.Errorf("%w: %s", werr, bytes.TrimSpace(h.said.Bytes()))
	}
	return errors.Join(err, werr)
}
