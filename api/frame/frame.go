// Package frame carries JSON messages and file descriptors over a Unix stream socket. A frame is a 4-byte
// big-endian length and that many bytes of JSON; descriptors ride with the frame's first byte (unix(7), SCM_RIGHTS).
package frame

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// MaxSize bounds one frame: a snapshot of 5,000 services with 50,000 endpoints fits.
	MaxSize = 64 << 20
	// MaxFiles is the most descriptors that one frame carries.
	MaxFiles = 16
)

// ErrTooLarge is returned for a frame over MaxSize, in either direction.
var ErrTooLarge = errors.New("frame too large")

// Conn reads and writes frames. One goroutine may read while others write; writes are serialised.
type Conn struct {
	u  *net.UnixConn
	wm sync.Mutex
}

// New wraps u, which it owns from now on.
func New(u *net.UnixConn) *Conn { return &Conn{u: u} }

// Dial connects to the Unix socket at path.
func Dial(path string, timeout time.Duration) (*Conn, error) {
	c, err := net.DialTimeout("unix", path, timeout)
	if err != nil {
		return nil, err
	}
	return New(c.(*net.UnixConn)), nil
}

// Close closes the socket; a blocked Receive returns.
func (c *Conn) Close() error { return c.u.Close() }

// SetDeadline bounds all future reads and writes.
func (c *Conn) SetDeadline(t time.Time) error { return c.u.SetDeadline(t) }

// SetWriteDeadline bounds future writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.u.SetWriteDeadline(t) }

// PeerCredentials is who is at the other end (SO_PEERCRED).
func (c *Conn) PeerCredentials() (*syscall.Ucred, error) {
	rc, err := c.u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *syscall.Ucred
	var serr error
	if err := rc.Control(func(fd uintptr) {
		cred, serr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, serr
}

// Send writes v as one frame. The files stay the caller's: the peer receives duplicates.
func (c *Conn) Send(v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if len(body) > MaxSize || len(files) > MaxFiles {
		return fmt.Errorf("send frame of %d bytes and %d files: %w", len(body), len(files), ErrTooLarge)
	}
	buf := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	buf = append(buf, body...)
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = syscall.UnixRights(fds...)
	}
	c.wm.Lock()
	defer c.wm.Unlock()
	n, _, err := c.u.WriteMsgUnix(buf, oob, nil)
	if err == nil && n < len(buf) {
		_, err = c.u.Write(buf[n:])
	}
	if err != nil {
		return fmt.Errorf("send frame: %w", err)
	}
	return nil
}

// Receive reads one frame into v, and returns its descriptors, which the caller must close. A clean end of the
// stream between frames is io.EOF.
func (c *Conn) Receive(v any) ([]*os.File, error) {
	var head [4]byte
	oob := make([]byte, syscall.CmsgSpace(MaxFiles*4))
	n, oobn, flags, _, err := c.u.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, err
	}
	if n == 0 && oobn == 0 {
		return nil, io.EOF
	}
	files, err := parseFiles(oob[:oobn])
	if err == nil && flags&syscall.MSG_CTRUNC != 0 {
		err = errors.New("receive frame: descriptors were truncated")
	}
	if err == nil {
		err = c.fill(head[n:])
	}
	if err == nil {
		err = c.body(binary.BigEndian.Uint32(head[:]), v)
	}
	if err != nil {
		CloseAll(files)
		return nil, err
	}
	return files, nil
}

func (c *Conn) body(size uint32, v any) error {
	if size > MaxSize {
		return fmt.Errorf("receive frame of %d bytes: %w", size, ErrTooLarge)
	}
	body := make([]byte, size)
	if err := c.fill(body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode frame: %w", err)
	}
	return nil
}

// fill reads all of p. The stream must not end here: that is io.ErrUnexpectedEOF.
func (c *Conn) fill(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_, err := io.ReadFull(c.u, p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("receive frame: %w", err)
	}
	return nil
}

func parseFiles(oob []byte) ([]*os.File, error) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive frame: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // some other kind of control message
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseAll closes every file; nil entries are passed over.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
