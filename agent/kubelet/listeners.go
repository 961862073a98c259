package kubelet

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// listener is a listening TCP socket of the node.
type listener struct {
	addr   netip.AddrPort
	cookie uint64 // the socket's; never used again
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

// tcpListen is TCP_LISTEN of linux/tcp_states.h.
const tcpListen = 10

// socketID is struct inet_diag_sockid, ports and addresses in network order.
type socketID struct {
	SourcePort, DestPort [2]byte
	Source, Dest         [16]byte
	Interface            uint32
	Cookie               [2]uint32
}

// diagRequest is struct inet_diag_req_v2.
type diagRequest struct {
	Family, Protocol, Extensions, Pad uint8
	States                            uint32
	ID                                socketID
}

// Len and Serialize make it a netlink request.
func (r *diagRequest) Len() int { return binary.Size(r) }

// Serialize implements nl.NetlinkRequestData.
func (r *diagRequest) Serialize() []byte {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.NativeEndian, r) // of fixed size, into memory
	return b.Bytes()
}

// diagMessage is the beginning of struct inet_diag_msg.
type diagMessage struct {
	Family, State, Timer, Retransmits uint8
	ID                                socketID
}

// listeners are the sockets that listen on a port, in this network namespace. The kernel looks only at sockets that listen.
func listeners(port uint16) ([]listener, error) {
	var all []listener
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		q := &diagRequest{Family: family, Protocol: unix.IPPROTO_TCP, States: 1 << tcpListen}
		binary.BigEndian.PutUint16(q.ID.SourcePort[:], port)
		req.AddData(q)
		answers, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			return nil, fmt.Errorf("list listening sockets: %w", err)
		}
		for _, raw := range answers {
			var m diagMessage
			if _, err := binary.Decode(raw, binary.NativeEndian, &m); err != nil {
				return nil, fmt.Errorf("list listening sockets: %w", err)
			}
			if m.State == tcpListen && binary.BigEndian.Uint16(m.ID.SourcePort[:]) == port {
				all = append(all, m.listener(port))
			}
		}
	}
	slices.SortFunc(all, func(a, b listener) int { return cmp.Compare(a.cookie, b.cookie) })
	return all, nil
}

func (m *diagMessage) listener(port uint16) listener {
	addr := netip.AddrFrom16(m.ID.Source)
	if m.Family == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(m.ID.Source[:4]))
	}
	return listener{netip.AddrPortFrom(addr, port), uint64(m.ID.Cookie[1])<<32 | uint64(m.ID.Cookie[0])}
}
