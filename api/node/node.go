// Package node is the protocol between the agent and the proxy of one node. The proxy listens on a Unix socket that
// outlives any one agent; the agent connects, reads Hello, and then sends requests, each answered by an Ack with the
// same ID. Messages travel as frames (package frame). The proxy keeps everything it was told until it is told
// otherwise, or dies; a new agent reconciles against Hello.
package node

import (
	"net/netip"

	"conduit.io/conduit/mesh"
)

// Version is the protocol version. Agent and proxy of different versions refuse each other.
const Version = 4

// Slot numbers one of a pod's four listeners, in the order in which their descriptors are sent.
type Slot uint32

// The slots. They equal enum cdt_slot in bpf/types.h.
const (
	InV4 Slot = iota
	InV6
	OutV4
	OutV6
	Slots // how many there are
)

// Message is the one envelope. Exactly one of the pointers is set.
type Message struct {
	ID uint64 `json:"id,omitempty"` // chosen by the agent; echoed in Ack, Stats

	// Proxy to agent.
	Hello   *Hello   `json:"hello,omitempty"`   // first message on a connection
	Ack     *Ack     `json:"ack,omitempty"`     // answer to every request
	Drained *Drained `json:"drained,omitempty"` // unsolicited: a draining pod has no connection left
	Lookup  *Lookup  `json:"lookup,omitempty"`  // unsolicited: addresses to be told about, or no longer

	// Agent to proxy.
	Kernel       *Kernel       `json:"kernel,omitempty"`       // files: the socket-tag map
	Snapshot     *Snapshot     `json:"snapshot,omitempty"`     // replaces the whole discovery state
	Update       *Update       `json:"update,omitempty"`       // changes it
	Certificates *Certificates `json:"certificates,omitempty"` // adds or replaces
	Pod          *Pod          `json:"pod,omitempty"`          // files: netns, then 4 listeners; or none to update settings only
	Remove       *Remove       `json:"remove,omitempty"`
	Stats        *StatsRequest `json:"stats,omitempty"` // answered by an Ack that carries Stats
	Shutdown     *Shutdown     `json:"shutdown,omitempty"`
}

// Hello says who the proxy is and what it holds.
type Hello struct {
	Version  int      `json:"version"`
	PID      int      `json:"pid"`
	Build    string   `json:"build"`
	Kernel   bool     `json:"kernel"`   // it has the socket-tag map
	Snapshot uint64   `json:"snapshot"` // version it acts on, 0 for none
	Pods     []uint64 `json:"pods"`     // netns cookies of the pods whose listeners it holds, draining ones excluded
	Draining []uint64 `json:"draining"`
	// Displaced: another proxy has been in this one's place meanwhile. Pods may have that one's listeners.
	Displaced bool `json:"displaced,omitempty"`
	// Interest is all that it wants to be told about, as the sum of its Lookups.
	Interest []netip.AddrPort `json:"interest"`
}

// Kernel hands over the BPF socket storage that tells the proxy's own sockets apart (package kernel, SockTag).
type Kernel struct{}

// Snapshot is an immutable, versioned view of discovery. Versions grow; they are not dense.
//
// Without OnDemand it is everything that there is: an address that is not in it is outside the mesh. With OnDemand it
// is what this node was asked for: the proxy has connections to an address wait, for a moment, that neither a
// workload, nor a Service, nor Nobody has, and asks for it by Lookup. Of an address that it has asked for, what earlier snapshots said holds
// until one says something else. Of the addresses in ByPort it asks for each port.
type Snapshot struct {
	Version     uint64           `json:"version"`
	TrustDomain string           `json:"trustDomain"`
	Node        string           `json:"node"`
	Workloads   []mesh.Workload  `json:"workloads"`
	Services    []mesh.Service   `json:"services"`
	OnDemand    bool             `json:"onDemand,omitempty"`
	Nobody      []netip.AddrPort `json:"nobody,omitempty"` // asked for, and outside the mesh; port 0: the whole address
	ByPort      []netip.Addr     `json:"byPort,omitempty"` // asked for, and ports of them belong to others: nodes'
}

// Certificates are the leaf certificates of this node's identities, and the roots to trust.
type Certificates struct {
	Roots  []byte `json:"roots"` // PEM bundle
	Leaves []Leaf `json:"leaves"`
}

// Leaf is one identity's certificate chain and key. It holds a secret: never log it.
type Leaf struct {
	Identity mesh.Identity `json:"identity"`
	Chain    []byte        `json:"chain"` // PEM, leaf first
	Key      []byte        `json:"key"`   // PEM, PKCS #8
}

// Pod adds an enrolled pod, or replaces the listeners of one that is already there (old listeners stop accepting,
// their connections go on), or, sent without files, changes its workload record.
type Pod struct {
	Cookie   uint64        `json:"cookie"` // of the pod's network namespace
	Workload mesh.Workload `json:"workload"`
}

// Remove takes a pod away. With Drain its listeners close and its connections go on until they end by themselves
// (then Drained is sent); without, everything of it closes at once. With Usher, too, clients are asked to end them and come again,
// where their protocol has words for that.
type Remove struct {
	Cookie uint64 `json:"cookie"`
	Drain  bool   `json:"drain,omitempty"`
	Usher  bool   `json:"usher,omitempty"`
}

// StatsRequest asks for the proxy's metrics.
type StatsRequest struct{}

// Shutdown asks the proxy to exit: at once, or when its connections have ended, at most GraceSeconds later.
type Shutdown struct {
	GraceSeconds int `json:"graceSeconds"`
}

// Drained reports that a draining pod's last connection has ended.
type Drained struct {
	Cookie uint64 `json:"cookie"`
}

// Lookup asks for addresses that pods have dialled, as a whole (port 0), or for ports of those that Snapshot.ByPort has. The answer
// is a Snapshot that has them, as soon as there is one; and later ones have them as long as they are not dropped.
type Lookup struct {
	Add  []netip.AddrPort `json:"add,omitempty"`
	Drop []netip.AddrPort `json:"drop,omitempty"` // no connection has used them for minutes
}

// Ack answers a request. Error is empty on success. Stats is the Prometheus text exposition for a StatsRequest.
type Ack struct {
	Error string `json:"error,omitempty"`
	Stats string `json:"stats,omitempty"`
}
