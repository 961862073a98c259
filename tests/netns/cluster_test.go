package netns_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/cluster/inpod"
	"conduit.io/conduit/tests/cluster/kube"
	"conduit.io/conduit/tests/cluster/kubetest"
	"conduit.io/conduit/tests/cluster/machine"
	"conduit.io/conduit/tests/testnet"
)

// groundEnv chooses the ground: "cluster" is a Kubernetes cluster of two nodes with Conduit installed, which all tests share
// (kubetest.Options say which; kubetest.Env must be set). Tests that do to nodes and agents what only a lab lets them do are in a lab still.
const groundEnv = "CONDUIT_GROUND"

// city is the cluster's installation.
var city struct {
	bin       string // Conduit's binaries; empty: there is no cluster
	installed bool
}

func mainOnCluster(m *testing.M) int {
	dir, err := os.MkdirTemp("", "conduit-city-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = kubetest.BuildConduit(dir, "city")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	city.bin = dir
	return kubetest.Main(m, kubetest.Options("city"))
}

// clusterGround is the cluster. Its namespaces are its own, and are deleted with the test.
type clusterGround struct {
	*kubetest.Cluster
	t      *testing.T
	spaces map[string]*kubetest.Cluster // by the name that they have got
}

func newClusterGround(t *testing.T) *clusterGround {
	t.Helper()
	c := kubetest.New(t)
	if !city.installed {
		c.ImportConduit(city.bin, "city")
		if said, err := c.Conduit(city.bin, "install", "--apply", "--wait", "--timeout", "2m", "--set", "image.tag=city"); err != nil {
			t.Fatalf("conduit install: %v\n%s", err, said)
		}
		city.installed = true
	}
	return &clusterGround{Cluster: c, t: t, spaces: map[string]*kubetest.Cluster{}}
}

func (g *clusterGround) namespace(t *testing.T, name string, labels, annotations map[string]string) string {
	t.Helper()
	space := g.spaces[name]
	if space == nil {
		space = kubetest.View(t, g.Cluster.Cluster)
		g.spaces[space.Namespace] = space
	}
	change, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels, "annotations": annotations}})
	if err != nil {
		t.Fatal(err)
	}
	space.Kubectl("patch", "namespace", space.Namespace, "--type=merge", "-p", string(change))
	return space.Namespace
}

func (g *clusterGround) node(i int) testnet.Node { return inpod.NodeOf(g.Cluster, i) }

type object = map[string]any

func (g *clusterGround) pods(t *testing.T, wanted ...resident) []testnet.Pod {
	t.Helper()
	for _, r := range wanted {
		account := "default"
		if r.opts.ServiceAccount != "" {
			account = r.opts.ServiceAccount
			g.apply(t, r.namespace, object{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": object{"name": account}})
		}
		g.apply(t, r.namespace, object{"apiVersion": "v1", "kind": "Pod",
			"metadata": object{"name": r.name, "labels": r.opts.Labels, "annotations": r.opts.Annotations},
			"spec": object{"nodeName": g.Node(r.node).Name(), "serviceAccountName": account, "terminationGracePeriodSeconds": 0,
				"containers": []object{{"name": "pause", "image": kube.PauseImage, "imagePullPolicy": "Never"}}}})
	}
	made := make([]testnet.Pod, len(wanted))
	for i, r := range wanted {
		space := g.spaces[r.namespace]
		space.WaitReady(r.name)
		if enabled := space.Kubectl("get", "namespace", r.namespace, "-o", `jsonpath={.metadata.labels.conduit\.io/mesh}`); enabled == "enabled" {
			space.Kubectl("wait", "--for=condition=conduit.io/Enrolled", "pod/"+r.name, "--timeout=60s")
		}
		made[i] = inpod.Enter(t, space, r.name, r.ports...)
	}
	return made
}

func (g *clusterGround) apply(t *testing.T, namespace string, o object) {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	g.spaces[namespace].Apply(string(data))
}

func (g *clusterGround) service(t *testing.T, s lab.Service) (addrs []netip.Addr) {
	t.Helper()
	var ports []object
	for _, p := range s.Ports {
		port := object{"name": p.Name, "port": p.Port}
		if n, err := strconv.Atoi(p.TargetPort); err == nil {
			port["targetPort"] = n
		}
		ports = append(ports, port)
	}
	g.apply(t, s.Namespace, object{"apiVersion": "v1", "kind": "Service", "metadata": object{"name": s.Name},
		"spec": object{"selector": s.Selector, "ipFamilyPolicy": "PreferDualStack", "ports": ports}})
	for _, a := range strings.Fields(g.spaces[s.Namespace].Kubectl("get", "service", s.Name, "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		addrs = append(addrs, netip.MustParseAddr(strings.Trim(a, `[]",`)))
	}
	return addrs
}

// halt stops the node's kubelet, which would start the container again.
func (g *clusterGround) halt(t *testing.T, i int) (resume func()) {
	t.Helper()
	if err := g.Node(i).StopDaemon("kubelet"); err != nil {
		t.Fatal(err)
	}
	resume = sync.OnceFunc(func() {
		if err := g.Node(i).StartDaemon(machine.Daemon{Name: "kubelet"}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(resume)
	return resume
}

func (g *clusterGround) authority(t *testing.T) authority {
	t.Helper()
	var secret struct{ Data map[string][]byte }
	if err := json.Unmarshal([]byte(g.Kubectl("-n", "conduit", "get", "secret", "conduit-issuer", "-o", "json")), &secret); err != nil {
		t.Fatal(err)
	}
	return parseAuthority(t, secret.Data["tls.crt"], secret.Data["tls.key"])
}

func (g *clusterGround) nodeAddr(t *testing.T, i int) netip.Addr {
	t.Helper()
	first, _, _ := strings.Cut(g.Kubectl("get", "node", g.Node(i).Name(), "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`), " ")
	return netip.MustParseAddr(first)
}

// capture is on the bridge that all nodes are plugged into.
func (g *clusterGround) capture() (*lab.Capture, error) {
	return lab.OpenNetns(g.ControlPlane().NetNS()).Capture()
}
