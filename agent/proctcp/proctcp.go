// Package proctcp reads the kernel's list of TCP sockets, as proc_net_tcp(5) has it. (sock_diag would tell the same, and is a module that not
// every node has.)
package proctcp

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

// State is what a socket is in; the kernel's TCP_ESTABLISHED and so on.
type State uint8

// Some of the states: those in which a socket is no connection's, or none's any more, and the last but one.
const (
	FinWait2 State = 5
	TimeWait State = 6
	Closed   State = 7
	Listens  State = 10
	Begins   State = 12 // a SYN was answered, and nothing accepted yet
)

// Socket is a line.
type Socket struct {
	Local netip.AddrPort
	State State
	Inode uint64 // the kernel counts them up; 0 for a socket that no process holds
}

// Each visits the sockets of the network namespace that the calling thread is in, of both families, those that listen first in each, until
// visit reports false for a family.
func Each(visit func(Socket) bool) error {
	for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a node without the family
		}
		if err == nil {
			err = Read(f, visit)
			f.Close()
		}
		if err != nil {
			return fmt.Errorf("list TCP sockets: %w", err)
		}
	}
	return nil
}

// Read visits the sockets of one file until visit reports false.
func Read(r io.Reader, visit func(Socket) bool) error {
	const address, state, inode = 1, 3, 9 // columns
	lines := bufio.NewScanner(r)
	lines.Scan() // the head
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) <= inode {
			return fmt.Errorf("line %q", lines.Text())
		}
		var s Socket
		var err error
		if s.Local, err = parseAddress(f[address]); err != nil {
			return err
		}
		st, err := strconv.ParseUint(f[state], 16, 8)
		if err != nil {
			return err
		}
		if s.Inode, err = strconv.ParseUint(f[inode], 10, 64); err != nil {
			return err
		}
		if s.State = State(st); !visit(s) {
			break
		}
	}
	return lines.Err()
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
