package netns_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// ground is where a scenario takes place: a lab, or real pods of a real Kubernetes cluster. It has two nodes, 1 and 2, both in the mesh.
type ground interface {
	// namespace makes a namespace, and returns the name that it has got, or changes one that it has made.
	namespace(t *testing.T, name string, labels, annotations map[string]string) string
	node(i int) testnet.Node
	// pods makes pods, and returns them, in their order, when they run, and are enrolled if they should be.
	pods(t *testing.T, wanted ...resident) []testnet.Pod
	// service makes a Service, and returns its addresses: the IPv4 one, and the IPv6 one if pods have such.
	service(t *testing.T, s lab.Service) []netip.Addr
	// halt keeps a proxy of node i that dies from having a successor, until the function it returns is called.
	halt(t *testing.T, i int) (resume func())
	// authority is the mesh's own.
	authority(t *testing.T) authority
	// nodeAddr is where node i is reached.
	nodeAddr(t *testing.T, i int) netip.Addr
	// capture records what passes between the nodes.
	capture() (*lab.Capture, error)
}

// resident is a pod that a scenario wants.
type resident struct {
	node            int
	namespace, name string
	opts            lab.PodOptions
	ports           []uint16 // a Service has them: a server may listen on them alone
}

// enrolledLabels are those of a namespace that is part of the mesh.
var enrolledLabels = map[string]string{"conduit.io/mesh": "enabled"}

// newGround is a lab, or the cluster if there is one.
func newGround(t *testing.T) ground {
	t.Helper()
	if city.bin != "" {
		return newClusterGround(t)
	}
	n := testnet.New(t, testnet.Config{Mesh: true})
	return &labGround{Net: n, nodes: []*lab.Node{n.MeshNode("one", lab.NodeConfig{}), n.MeshNode("two", lab.NodeConfig{Primary: lab.PTP})}}
}

// labGround is a lab. Its first node has the bridge plugin, the second one ptp.
type labGround struct {
	*testnet.Net
	nodes    []*lab.Node
	services int
}

func (g *labGround) namespace(t *testing.T, name string, labels, annotations map[string]string) string {
	t.Helper()
	if err := g.WriteNamespace(name, labels, annotations); err != nil {
		t.Fatal(err)
	}
	return name
}

func (g *labGround) node(i int) testnet.Node { return g.nodes[i-1] }

// pods makes all pods at once: each waits for duplicate address detection.
func (g *labGround) pods(t *testing.T, wanted ...resident) []testnet.Pod {
	t.Helper()
	made := make([]testnet.Pod, len(wanted))
	var group sync.WaitGroup
	for i, r := range wanted {
		group.Go(func() {
			p, err := g.nodes[r.node-1].AddPod(t.Context(), r.namespace, r.name, r.opts)
			if err != nil {
				t.Error(err)
			}
			made[i] = p
		})
	}
	if group.Wait(); t.Failed() {
		t.FailNow()
	}
	return made
}

func (g *labGround) service(t *testing.T, s lab.Service) []netip.Addr {
	t.Helper()
	g.services++
	s.ClusterIPs = lab.ServiceIPs(g.services)
	if err := g.WriteService(s); err != nil {
		t.Fatal(err)
	}
	return s.ClusterIPs
}

// halt stops the agent's process as it is, so that it does not notice that its proxy is gone.
func (g *labGround) halt(t *testing.T, i int) (resume func()) {
	t.Helper()
	pid := g.nodes[i-1].AgentPID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume = sync.OnceFunc(func() { syscall.Kill(pid, syscall.SIGCONT) })
	t.Cleanup(resume)
	return resume
}

func (g *labGround) authority(t *testing.T) authority {
	t.Helper()
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(g.Dir(), "ca", name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	return parseAuthority(t, read("ca.crt"), read("ca.key"))
}

func (g *labGround) nodeAddr(_ *testing.T, i int) netip.Addr { return g.nodes[i-1].Addrs()[0] }

func (g *labGround) capture() (*lab.Capture, error) { return g.Switch().Capture() }
