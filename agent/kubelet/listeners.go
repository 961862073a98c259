package kubelet

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// listener is a listening TCP socket of the node.
type listener struct {
	addr  netip.AddrPort
	inode uint64 // the socket's; the kernel counts them up
}

// dial is an address at which the listener is reached from the node itself.
func (l listener) dial() netip.AddrPort {
	switch {
	case !l.addr.Addr().IsUnspecified():
		return l.addr
	case l.addr.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), l.addr.Port())
	default:
		return netip.AddrPortFrom(netip.IPv6Loopback(), l.addr.Port())
	}
}

// listeners are the sockets that listen on a port, in this network namespace. (The kernel's sock_diag, which would tell the
// same, is a module that not every node has.)
func listeners(port uint16) ([]listener, error) {
	var all []listener
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a node without the family
		}
		if err == nil {
			var found []listener
			found, err = readListeners(f, port)
			all = append(all, found...)
			f.Close()
		}
		if err != nil {
			return nil, fmt.Errorf("list listening sockets: %w", err)
		}
	}
	return all, nil
}

// readListeners reads the beginning of a file of proc_net_tcp: the sockets that listen come first, so that those of a busy
// node's connections are not read.
func readListeners(r io.Reader, port uint16) ([]listener, error) {
	const address, state, inode, listens = 1, 3, 9, "0A" // columns; TCP_LISTEN
	var all []listener
	lines := bufio.NewScanner(r)
	lines.Scan() // the head
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) <= inode {
			return nil, fmt.Errorf("line %q", lines.Text())
		}
		if f[state] != listens {
			break
		}
		addr, err := parseAddress(f[address])
		if err != nil {
			return nil, err
		}
		if addr.Port() != port {
			continue
		}
		n, err := strconv.ParseUint(f[inode], 10, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, listener{addr, n})
	}
	return all, lines.Err()
}

// parseAddress reads ADDRESS:PORT in hexadecimal; the address is of 32-bit words, each in the computer's order.
func parseAddress(s string) (netip.AddrPort, error) {
	words, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(words)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}
