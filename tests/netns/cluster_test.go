package netns_test

import (
	"cmp"
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

// cityVersion is what is installed, the same build as that of tests/e2e.
const cityVersion = "e2e-1"

// city is the cluster's installation.
var city struct {
	bin       string // Conduit's binaries; empty: there is no cluster
	installed bool
}

func mainOnCluster(m *testing.M) int {
	var err error
	if city.bin, err = kubetest.BuildConduit(cityVersion); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return kubetest.Main(m, kubetest.Options("city"))
}

// clusterGround is the cluster. Its namespaces are its own, and are deleted with the test.
type clusterGround struct {
	*kubetest.Cluster
	t      *testing.T
	spaces map[string]*space // by the name that they have got
}

type space struct {
	*kubetest.Cluster
	meshed bool // the namespace is labelled
}

func newClusterGround(t *testing.T) *clusterGround {
	t.Helper()
	c := kubetest.New(t)
	if !city.installed {
		c.ImportConduit(city.bin, cityVersion)
		if said, err := c.Conduit(city.bin, "install", "--apply", "--wait", "--timeout", "2m", "--set", "image.tag="+cityVersion); err != nil {
			t.Fatalf("conduit install: %v\n%s", err, said)
		}
		city.installed = true
	}
	return &clusterGround{Cluster: c, t: t, spaces: map[string]*space{}}
}

func (g *clusterGround) namespace(t *testing.T, name string, labels, annotations map[string]string) string {
	t.Helper()
	here := g.spaces[name]
	if here == nil {
		here = &space{Cluster: kubetest.View(t, g.Cluster.Cluster)}
		g.spaces[here.Namespace] = here
	}
	change, err := json.Marshal(object{"metadata": object{"labels": labels, "annotations": annotations}})
	if err != nil {
		t.Fatal(err)
	}
	here.Kubectl("patch", "namespace", here.Namespace, "--type=merge", "-p", string(change))
	here.meshed = labels["conduit.io/mesh"] == "enabled"
	return here.Namespace
}

func (g *clusterGround) node(i int) testnet.Node { return inpod.NodeOf(g.Cluster, i) }

type object = map[string]any

func (g *clusterGround) pods(t *testing.T, wanted ...resident) []testnet.Pod {
	t.Helper()
	objects, names := map[string][]object{}, map[string][]string{}
	for _, r := range wanted {
		account := cmp.Or(r.opts.ServiceAccount, "default")
		if account != "default" {
			objects[r.namespace] = append(objects[r.namespace], object{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": object{"name": account}})
		}
		objects[r.namespace] = append(objects[r.namespace], object{"apiVersion": "v1", "kind": "Pod",
			"metadata": object{"name": r.name, "labels": r.opts.Labels, "annotations": r.opts.Annotations},
			"spec": object{"nodeName": g.Node(r.node).Name(), "serviceAccountName": account, "terminationGracePeriodSeconds": 0,
				"containers": []object{{"name": "pause", "image": kube.PauseImage, "imagePullPolicy": "Never"}}}})
		names[r.namespace] = append(names[r.namespace], r.name)
	}
	for namespace, list := range objects { // all are made at the same time
		g.apply(t, namespace, list...)
	}
	for namespace, list := range names {
		here := g.spaces[namespace]
		here.WaitReady(list...)
		meshed := []string(nil)
		for _, r := range wanted {
			if r.namespace == namespace && here.meshed && r.opts.Labels["conduit.io/mesh"] != "disabled" {
				meshed = append(meshed, "pod/"+r.name)
			}
		}
		if len(meshed) > 0 {
			here.Kubectl(append(append([]string{"wait"}, meshed...), "--for=condition=conduit.io/Enrolled", "--timeout=60s")...)
		}
	}
	made := make([]testnet.Pod, len(wanted))
	for i, r := range wanted {
		made[i] = inpod.Enter(t, g.spaces[r.namespace].Cluster, r.name, r.ports...)
	}
	return made
}

func (g *clusterGround) apply(t *testing.T, namespace string, objects ...object) {
	t.Helper()
	data, err := json.Marshal(object{"apiVersion": "v1", "kind": "List", "items": objects})
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
