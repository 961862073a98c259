// Package podapi is the protocol between the CNI plugin and the agent: one request and one response per connection,
// as frames (package frame) on the Unix socket that the plugin's agentSocket names.
package podapi

import "net/netip"

// Version is the protocol version; the agent refuses others.
const Version = 1

// Op is what the plugin asks for, named as the CNI verb it serves.
type Op string

// The operations.
const (
	Add    Op = "ADD"    // wire the pod; answered when kernel and proxy have it
	Del    Op = "DEL"    // forget the attachment
	Check  Op = "CHECK"  // compare the attachment with the kernel
	Status Op = "STATUS" // is the agent able to serve ADD
	GC     Op = "GC"     // drop every attachment of the network that is not in Valid
)

// Request is one call. Fields not needed by an Op are empty.
type Request struct {
	Version     int          `json:"version"`
	Op          Op           `json:"op"`
	Network     string       `json:"network"`     // name of the CNI network configuration
	ContainerID string       `json:"containerID"` // CNI_CONTAINERID
	IfName      string       `json:"ifName"`      // CNI_IFNAME
	Netns       string       `json:"netns"`       // CNI_NETNS, a path on the node
	Namespace   string       `json:"namespace"`   // K8S_POD_NAMESPACE of CNI_ARGS
	Pod         string       `json:"pod"`         // K8S_POD_NAME
	PodUID      string       `json:"podUID"`      // K8S_POD_UID; may be empty
	Addrs       []netip.Addr `json:"addrs"`       // the pod's addresses from prevResult
	Valid       []Attachment `json:"valid"`       // GC only
}

// Attachment is what CNI calls an attachment: a container and an interface in it.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Response answers a Request. A nil Error is success.
type Response struct {
	Error *Error `json:"error,omitempty"`
	Wired bool   `json:"wired"` // ADD, CHECK: the pod is enrolled; false: it is not part of the mesh and was left alone
}

// Error is a failure that a user will read: what happened, the probable cause, and the next step.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Error makes *Error an error.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + " (" + e.Hint + ")"
}

// Code classifies an Error.
type Code string

// The codes.
const (
	CodeNotReady   Code = "not-ready"   // the agent or the proxy cannot serve yet: try again
	CodeUnknownPod Code = "unknown-pod" // nothing describes the pod
	CodeBadRequest Code = "bad-request" // the request cannot be right
	CodeBadNetns   Code = "bad-netns"   // the namespace is not there, or is the node's own
	CodeMismatch   Code = "mismatch"    // CHECK found the kernel in another state
	CodeInternal   Code = "internal"
)
