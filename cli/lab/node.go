package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"
)

// Families are the address families of a node's pods.
type Families uint8

// The families. The zero value means both.
const (
	IPv4 Families = 1 << iota
	IPv6
	DualStack = IPv4 | IPv6
)

// The primary plugins that a node can use.
const (
	Bridge = "bridge"
	PTP    = "ptp"
)

// NodeConfig says how a node wires its pods.
type NodeConfig struct {
	Primary    string   // Bridge (default) or PTP
	Families   Families // of the pods; default DualStack. The node itself always has both
	Mesh       bool     // chain conduit-cni after the primary plugin
	CNIVersion string   // default 1.1.0

	Chain      func(plugins []any) []any // puts more plugins into the chain; nil: none
	PluginPath []string                  // where they are
}

// Node is a namespace that routes its pods' traffic, and where an agent may run.
type Node struct {
	*Netns
	lab   *Lab
	name  string
	index int // 1..maxNodes
	cfg   NodeConfig
	dir   string

	mu        sync.Mutex
	agent     *agentProc
	installed *AgentConfig // of the last agent that was started; nil when there is nothing to uninstall
}

var validNodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// AddNode adds a node, connects it to the switch and routes its pod subnets from and to the others.
func (l *Lab) AddNode(name string, cfg NodeConfig) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("add node %s: %w", name, err)
	}
	if !validNodeName.MatchString(name) {
		return nil, fmt.Errorf("add node %q: want 1 to 32 characters of a-z, 0-9 and -", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.nodes) == maxNodes {
		return nil, fmt.Errorf("add node %s: the lab is closed or full", name)
	}
	n := &Node{lab: l, name: name, index: len(l.nodes) + 1, cfg: cfg, dir: filepath.Join(l.cfg.Dir, name)}
	if err := n.makeDirs(); err != nil {
		return nil, fmt.Errorf("add node %s: %w", name, err)
	}
	ns, err := createNetns(l.cfg.Name + ".node." + name)
	if err != nil {
		return nil, fmt.Errorf("add node %s: %w", name, err)
	}
	n.Netns = ns
	if err := l.join(n); err != nil {
		return nil, errors.Join(fmt.Errorf("add node %s: %w", name, err), n.remove())
	}
	l.nodes = append(l.nodes, n)
	l.log.Info("node added", "node", name, "netns", n.Path())
	return n, nil
}

func (c *NodeConfig) complete() error {
	if c.Primary == "" {
		c.Primary = Bridge
	}
	if c.Primary != Bridge && c.Primary != PTP {
		return fmt.Errorf("primary plugin %q: want %s or %s", c.Primary, Bridge, PTP)
	}
	if c.Families == 0 {
		c.Families = DualStack
	}
	if c.CNIVersion == "" {
		c.CNIVersion = "1.1.0"
	}
	return nil
}

func (n *Node) makeDirs() error {
	for _, d := range []string{n.RunDir(), n.ManifestDir(), n.CNIConfDir(), n.cniCacheDir()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	const longest = 107 // sockaddr_un.sun_path holds 108 bytes with the final NUL (unix(7))
	if s := n.AgentSocket(); len(s) > longest {
		return fmt.Errorf("socket path %s is %d bytes, and the kernel allows %d: choose a shorter lab directory", s, len(s), longest)
	}
	return nil
}

// join connects n and exchanges routes; l.mu is held.
func (l *Lab) join(n *Node) error {
	if err := l.sw.connect(n); err != nil {
		return err
	}
	for _, other := range l.nodes {
		if err := other.InNetns(func() error { return addRoutes(n.index) }); err != nil {
			return err
		}
		if err := n.InNetns(func() error { return addRoutes(other.index) }); err != nil {
			return err
		}
	}
	if err := n.writeConflist(); err != nil {
		return err
	}
	for file, m := range l.manifests {
		if err := n.putManifest(file, m.forNode(n)); err != nil {
			return err
		}
	}
	return nil
}

// Name is the node's name, as in a pod's spec.nodeName.
func (n *Node) Name() string { return n.name }

// Addrs are the node's own addresses, IPv4 first.
func (n *Node) Addrs() []netip.Addr {
	v4, v6 := nodeAddrs(n.index)
	return []netip.Addr{v4.Addr(), v6.Addr()}
}

// RunDir is the agent's --run-dir.
func (n *Node) RunDir() string { return filepath.Join(n.dir, "run") }

// ManifestDir is the agent's --manifests directory.
func (n *Node) ManifestDir() string { return filepath.Join(n.dir, "manifests") }

// CNIConfDir holds the node's CNI configuration list.
func (n *Node) CNIConfDir() string { return filepath.Join(n.dir, "cni") }

func (n *Node) cniCacheDir() string { return filepath.Join(n.dir, "cni-cache") }

// AgentSocket is where the agent answers the CNI plugin.
func (n *Node) AgentSocket() string { return filepath.Join(n.RunDir(), "cni.sock") }

// PinDir is the agent's --bpffs directory. (bpffs refuses names with dots.)
func (n *Node) PinDir() string { return filepath.Join(n.lab.cfg.BPFFS, n.lab.cfg.Name+"-"+n.name) }

// AgentLog is the file with everything the node's agents wrote.
func (n *Node) AgentLog() string { return filepath.Join(n.dir, "agent.log") }
