// Package kernel holds the types that Conduit's BPF programs share with user space. Most are generated from the
// programs' BTF (types.go); the methods here turn them into Go's own types. The package imports the standard library
// only, so that the proxy, which must not link a BPF library, can write its socket tags.
package kernel

import (
	"encoding/binary"
	"net/netip"
)

// Mark is the mark (SO_MARK) of a steered socket; the rule in the pod's namespace selects by it. CDT_MARK in
// bpf/types.h.
const Mark = 0x4d1

// Schema is the version of the pinned maps' layout; maps of another one cannot be taken over. CDT_SCHEMA in
// bpf/types.h.
const Schema = 1

// MaxAddrs is how many addresses a pod may have.
const MaxAddrs = len(Pod{}.Addrs)

// MaxProbes is how many ports of a pod the kubelet may probe.
const MaxProbes = len(Probes{}.Ports)

// AddrFrom is a in kernel form. A zone is dropped; the zero Addr stands for the zero netip.Addr.
func AddrFrom(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	return Addr{B: a.As16()}
}

// Netip is a in Go's form, IPv4 unmapped.
func (a Addr) Netip() netip.Addr { return netip.AddrFrom16(a.B).Unmap() }

// NewSockTag is the tag that the proxy stores for a socket of its own before it connects: KindProxy (the socket is not
// steered; peer is ignored by the kernel), or KindVirtual (the same, and the application that accepts the connection
// sees peer as its remote address).
func NewSockTag(kind Kind, peer netip.AddrPort) SockTag {
	t := SockTag{Addr: AddrFrom(peer.Addr()), Kind: kind}
	var port [2]byte
	binary.BigEndian.PutUint16(port[:], peer.Port())
	t.Port = binary.NativeEndian.Uint16(port[:])
	return t
}

// AddrPort is the address that the tag carries.
func (t SockTag) AddrPort() netip.AddrPort {
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], t.Port)
	return netip.AddrPortFrom(t.Addr.Netip(), binary.BigEndian.Uint16(port[:]))
}

// bypassNames are the reasons as metrics and users read them.
var bypassNames = [BypassCount]string{
	BypassLocal:     "local",
	BypassProxy:     "proxy",
	BypassDownOpen:  "down-open",
	BypassRefused:   "refused",
	BypassInOpen:    "inbound-down-open",
	BypassInRefused: "inbound-refused",
	BypassUnseen:    "unseen",
	BypassUnrouted:  "unrouted",
	BypassProbe:     "probe",
}

// String is the reason as metrics and users read it.
func (b Bypass) String() string {
	if int(b) < len(bypassNames) {
		return bypassNames[b]
	}
	return "unknown"
}

// Fault reports whether the mesh failed when it counted b: the pod is enrolled, and yet a connection went around the
// proxy. The other reasons are as designed.
func (b Bypass) Fault() bool { return b == BypassUnseen || b == BypassUnrouted }

// NewTuple is the connection from src to dst, as the kernel's maps have it.
func NewTuple(src, dst netip.AddrPort) Tuple {
	return Tuple{Src: AddrFrom(src.Addr()), Dst: AddrFrom(dst.Addr()), Sport: src.Port(), Dport: dst.Port()}
}
