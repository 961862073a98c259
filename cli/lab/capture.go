package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Flow is one direction of a TCP connection.
type Flow struct {
	Src, Dst netip.AddrPort
}

// String is "source > destination".
func (f Flow) String() string { return f.Src.String() + " > " + f.Dst.String() }

// captureLimit bounds the payload that a Capture keeps; past it, it only counts.
const captureLimit = 256 << 20

// Capture records the TCP payload of frames that enter a namespace (packet(7)). Its methods may be called while it
// runs.
type Capture struct {
	fd   int
	done chan struct{}
	stop [2]int // pipe: closing the write end ends the reader

	mu      sync.Mutex
	flows   map[Flow][]byte
	kept    int
	lost    uint64
	readErr error
}

// Capture starts recording. On the switch every frame between two nodes enters exactly once. Stop it when done.
func (n *Netns) Capture() (*Capture, error) {
	c := &Capture{done: make(chan struct{}), flows: map[Flow][]byte{}}
	err := n.InNetns(func() (err error) {
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture in %s: %w", n.name, err)
	}
	// Best effort: a burst is lost if the buffer is small, and then Lost says so.
	_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	if err := unix.Pipe2(c.stop[:], unix.O_CLOEXEC); err != nil {
		unix.Close(c.fd)
		return nil, fmt.Errorf("capture in %s: %w", n.name, err)
	}
	go c.run()
	return c, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (c *Capture) run() {
	defer close(c.done)
	buf := make([]byte, 1<<20) // more than the largest segment that offloading makes
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}, {Fd: int32(c.stop[0]), Events: unix.POLLIN}}
	for {
		size, from, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case err == nil:
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING {
				c.record(buf[:size])
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN):
			c.fail(err)
			return
		}
		if fds[1].Revents != 0 {
			return // stopped, and everything that had arrived is read
		}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			c.fail(err)
			return
		}
	}
}

func (c *Capture) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readErr = os.NewSyscallError("capture", err)
}

func (c *Capture) record(packet []byte) {
	flow, payload, ok := parseTCP(packet)
	if !ok || len(payload) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept+len(payload) > captureLimit {
		c.lost++
		return
	}
	c.kept += len(payload)
	c.flows[flow] = append(c.flows[flow], payload...)
}

// Stop ends the recording, after reading what had arrived. It returns an error if the record has holes: then the
// absence of something in it proves nothing.
func (c *Capture) Stop() error {
	unix.Close(c.stop[1])
	<-c.done
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	unix.Close(c.fd)
	unix.Close(c.stop[0])
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.lost += uint64(stats.Drops)
	}
	if c.lost > 0 {
		err = fmt.Errorf("capture lost %d packets", c.lost)
	}
	return errors.Join(c.readErr, err)
}

// Flows copies what was recorded so far: the payload of each direction, in order of arrival.
func (c *Capture) Flows() map[Flow][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[Flow][]byte, len(c.flows))
	for f, b := range c.flows {
		out[f] = bytes.Clone(b)
	}
	return out
}

// Find returns the flows whose payload contains marker.
func (c *Capture) Find(marker []byte) []Flow {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []Flow
	for f, b := range c.flows {
		if bytes.Contains(b, marker) {
			found = append(found, f)
		}
	}
	return found
}

// parseTCP finds the TCP payload of an IPv4 (RFC 791) or IPv6 (RFC 8200) packet without extension headers.
func parseTCP(p []byte) (Flow, []byte, bool) {
	var src, dst netip.Addr
	switch {
	case len(p) >= 20 && p[0]>>4 == 4 && p[9] == unix.IPPROTO_TCP:
		header, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		p = trimTo(p, total)[min(header, len(p)):]
	case len(p) >= 40 && p[0]>>4 == 6 && p[6] == unix.IPPROTO_TCP:
		total := int(binary.BigEndian.Uint16(p[4:]))
		src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		if total > 0 {
			total += 40
		}
		p = trimTo(p, total)[40:]
	default:
		return Flow{}, nil, false
	}
	if len(p) < 20 {
		return Flow{}, nil, false
	}
	flow := Flow{
		Src: netip.AddrPortFrom(src, binary.BigEndian.Uint16(p)),
		Dst: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(p[2:])),
	}
	offset := int(p[12]>>4) * 4
	if offset < 20 || offset > len(p) {
		return Flow{}, nil, false
	}
	return flow, p[offset:], true
}

// trimTo drops link-layer padding. A length of 0 stands for a segment too large for the field (BIG TCP).
func trimTo(p []byte, total int) []byte {
	if total >= 20 && total < len(p) {
		return p[:total]
	}
	return p
}
