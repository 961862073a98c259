// Code generated from bpf/types.h by loader/gen; DO NOT EDIT.

package kernel

import "structs"

// Addr is an address in network order, IPv4 held v4-mapped.
type Addr struct {
	_ structs.HostLayout
	B [16]uint8
}

// Slot numbers a pod's listeners. It equals Slot of package api/node.
type Slot uint32

// The values of Slot.
const (
	SlotInV4  Slot = 0
	SlotInV6  Slot = 1
	SlotOutV4 Slot = 2
	SlotOutV6 Slot = 3
	SlotCount      = 4 // how many there are
)

// Kind is what a socket is to the mesh.
type Kind uint16

// The values of Kind.
const (
	KindNone    Kind = 0
	KindProxy   Kind = 1
	KindVirtual Kind = 2
	KindPeer    Kind = 3
	KindPassed  Kind = 4
	KindKubelet Kind = 5
)

// SockTag is the value of map cdt_tags: 20 bytes, no padding. Port is in network order.
type SockTag struct {
	_    structs.HostLayout
	Addr Addr
	Port uint16
	Kind Kind
}

// PodFlag is how a pod is treated; a set of bits.
type PodFlag uint32

// The values of PodFlag.
const (
	PodFlagOutOpen PodFlag = 1
	PodFlagInOpen  PodFlag = 2
	PodFlagLeft    PodFlag = 4
)

// Pod is the value of map cdt_pods, keyed by network namespace cookie.
type Pod struct {
	_      structs.HostLayout
	Flags  PodFlag
	Naddrs uint32
	Addrs  [8]Addr
}

// Probes is the value of map cdt_probes, keyed by network namespace cookie: ports in host order.
type Probes struct {
	_      structs.HostLayout
	Nports uint32
	Ports  [32]uint16
}

// ListenerKey is the key of map cdt_listeners.
type ListenerKey struct {
	_      structs.HostLayout
	Cookie uint64
	Slot   Slot
	Pad    uint32
}

// CarryKey is the key of map cdt_carry: a 4-tuple in one namespace, ports in host order.
type CarryKey struct {
	_      structs.HostLayout
	Cookie uint64
	Src    Addr
	Dst    Addr
	Sport  uint16
	Dport  uint16
	Pad    uint32
}

// Process is one run of a program, and never another's.
type Process struct {
	_     structs.HostLayout
	Start uint64
	Execs uint64
	Tgid  uint32
	Pad   uint32
}

// Tuple is the key of map cdt_vouched: a connection as its client sees it, ports in host order.
type Tuple struct {
	_     structs.HostLayout
	Src   Addr
	Dst   Addr
	Sport uint16
	Dport uint16
}

// Witness is the element of map cdt_witness: a question, and its answer.
type Witness struct {
	_           structs.HostLayout
	Cookie      uint64
	Conn        Tuple
	Uid         uint32
	Who         Process
	PidNs       uint32
	PidNsParent uint32
}

// Bypass is why a connection of an enrolled pod did not pass the proxy.
type Bypass uint32

// The values of Bypass.
const (
	BypassLocal     Bypass = 0
	BypassProxy     Bypass = 1
	BypassDownOpen  Bypass = 2
	BypassRefused   Bypass = 3
	BypassInOpen    Bypass = 4
	BypassInRefused Bypass = 5
	BypassUnseen    Bypass = 6
	BypassUnrouted  Bypass = 7
	BypassProbe     Bypass = 8
	BypassCount            = 9 // how many there are
)

// Counters is the value, per CPU, of map cdt_counters, keyed by network namespace cookie.
type Counters struct {
	_        structs.HostLayout
	Created  uint64
	Steered  uint64
	Bypassed [9]uint64
}
