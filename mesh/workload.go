package mesh

import (
	"net/netip"
	"strings"
)

// Workload is a pod, or an external endpoint, with an identity. Values in a snapshot are immutable.
type Workload struct {
	UID            string       `json:"uid"` // unique in a cluster for all time; standalone: namespace/name
	Namespace      string       `json:"namespace"`
	Name           string       `json:"name"`
	ServiceAccount string       `json:"serviceAccount"`
	Owner          string       `json:"owner,omitempty"` // kind/name of the controller, for metrics; empty: the pod itself
	Node           string       `json:"node"`
	Addrs          []netip.Addr `json:"addrs"`
	Meshed         bool         `json:"meshed"` // wants enrolment: reachable by mTLS on MeshPort
	Mode           Mode         `json:"mode"`
	Down           Down         `json:"down"`
}

// Label is how metrics name the workload: namespace and owner, else itself.
func (w *Workload) Label() string {
	name := w.Name
	if w.Owner != "" {
		name = w.Owner[strings.LastIndexByte(w.Owner, '/')+1:]
	}
	return w.Namespace + "/" + name
}

// Identity is the workload's identity in trustDomain.
func (w *Workload) Identity(trustDomain string) Identity {
	return Identity{TrustDomain: trustDomain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}
}

// Service is what a client dials: one set of virtual addresses, and the ports behind them.
type Service struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Addrs     []netip.Addr `json:"addrs"` // ClusterIPs; empty for a headless Service
	Ports     []Port       `json:"ports"`
	// Affinity is for how many seconds connections of one client address stay with one endpoint; 0: they do not.
	Affinity uint32 `json:"affinity,omitempty"`
	// Sources are the clients that it takes at Addrs, and at its ports' At; empty: all. A family that has none takes all.
	Sources []netip.Prefix `json:"sources,omitempty"`
}

// Port is one port of a Service with the endpoints that serve it.
type Port struct {
	Port      uint16     `json:"port"`
	Name      string     `json:"name,omitempty"`
	Protocol  Protocol   `json:"protocol"`
	Endpoints []Endpoint `json:"endpoints"`
	// At is where else it is dialled, at addresses that others share: NodePorts, host ports, shared external IPs.
	At []netip.AddrPort `json:"at,omitempty"`
}

// Endpoint is one address of a workload behind a Service port.
type Endpoint struct {
	Addr     netip.AddrPort `json:"addr"`
	Workload string         `json:"workload"` // Workload.UID; empty for an endpoint outside the mesh
}

// Protocol is what a connection speaks, as declared or as detected.
type Protocol string

// The protocols. Detect is the default where nothing was declared.
const (
	Detect Protocol = "detect"
	HTTP1  Protocol = "http1"
	HTTP2  Protocol = "http2"
	Opaque Protocol = "opaque"
)
