package testnet

import (
	"context"
	"net"
	"net/netip"

	"conduit.io/conduit/cli/lab"
)

// Pod is where the programs of a scenario run: a pod of a lab (*lab.Pod), or of a Kubernetes cluster (*inpod.Pod). Its methods may be
// called from several goroutines.
type Pod interface {
	String() string // NAMESPACE/NAME
	Name() string
	Addrs() []netip.Addr
	IP(lab.Families) netip.Addr // the zero Addr if it has none of the family
	IfName() string

	// Get asks the agent of the pod's node.
	Get(ctx context.Context, path string) (status int, body []byte, err error)

	// InNetns runs fn in the pod's network namespace. Sockets that it makes may pass the mesh by: Socket makes the pod's.
	InNetns(fn func() error) error
	Socket(family, kind, proto int) (fd int, err error)
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	Command(ctx context.Context, name string, args ...string) *lab.Cmd
}

// Node is a node with an agent and a proxy.
type Node interface {
	Name() string
	Get(ctx context.Context, path string) (status int, body []byte, err error)
	ProxyPID() (int, error) // on this machine; 0: there is none
	PinDir() string         // where the agent pins its programs, on this machine
}

// Asked answers what an agent is asked: a Node, or a Pod for its own.
type Asked interface {
	Get(ctx context.Context, path string) (status int, body []byte, err error)
}
