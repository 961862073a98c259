package main

import (
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// piece is how much is written or discarded at a time.
const piece = 256 << 10

// fill writes for d and returns how much.
func fill(c net.Conn, d time.Duration) (int64, error) {
	b := make([]byte, piece)
	for i := range b {
		b[i] = byte(i * 131)
	}
	sum := int64(0)
	for start := time.Now(); time.Since(start) < d; {
		n, err := c.Write(b)
		sum += int64(n)
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// discard reads to the end and returns how much there was. Of a TCP connection the bytes are dropped in the kernel (MSG_TRUNC,
// tcp(7)): the generator's core is not to be what limits the throughput.
func discard(c net.Conn) (int64, error) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return io.CopyBuffer(struct{ io.Writer }{io.Discard}, c, make([]byte, piece))
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return 0, err
	}
	sum, buf := int64(0), make([]byte, piece)
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		switch {
		case errors.Is(rerr, unix.EINTR):
			continue
		case err != nil:
			return sum, err
		case rerr != nil:
			return sum, rerr
		case n == 0:
			return sum, nil
		}
		sum += int64(n)
	}
}
