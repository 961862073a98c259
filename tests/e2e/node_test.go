package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/cluster/kubetest"
	"conduit.io/conduit/tests/cluster/machine"
)

// confDir is where the container runtime has its network configurations, on a node.
const confDir = "/etc/cni/net.d"

// byHand is Conduit on the nodes without its control plane: agents that are daemons of the nodes, and read manifests.
type byHand struct {
	*kubetest.Cluster
	t *testing.T
}

// startByHand starts agents and installs the plugin on all nodes, and takes both away when the test ends.
func startByHand(t *testing.T, c *kubetest.Cluster) *byHand {
	t.Helper()
	h := &byHand{Cluster: c, t: t}
	for i := 1; i <= c.Nodes(); i++ {
		c.Run(i, "mkdir", "-p", "/etc/conduit/manifests", "/etc/conduit/ca")
	}
	h.startAgent(1)
	h.shareCA()
	for i := 2; i <= c.Nodes(); i++ {
		h.startAgent(i)
	}
	for i := 1; i <= c.Nodes(); i++ {
		before := h.configs(i)
		t.Cleanup(func() { h.remove(i, before) })
		c.Run(i, nodeBin+"/conduit-cni", "install")
		if conf := c.Run(i, "sh", "-c", "cat "+confDir+"/*"); strings.Count(conf, "conduit-cni") != 1 {
			t.Fatalf("after conduit-cni install on node %d:\n%s", i, conf)
		}
	}
	return h
}

func (h *byHand) startAgent(i int) {
	h.t.Helper()
	err := h.Node(i).StartDaemon(machine.Daemon{Name: "conduit-agent", Argv: []string{nodeBin + "/conduit-agent", "--standalone",
		"--manifests=/etc/conduit/manifests", "--ca-dir=/etc/conduit/ca", "--node-name=" + h.Node(i).Name()}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.Eventually(fmt.Sprintf("the agent of node %d is ready", i), func() error {
		_, err := h.Node(i).Run(h.Context(), "curl", "-sSf", "http://127.0.0.1:4191/readyz")
		return err
	})
}

// shareCA copies the first agent's authority to the other nodes.
func (h *byHand) shareCA() {
	h.t.Helper()
	dir := "/etc/conduit/ca"
	entries, err := os.ReadDir(h.Node(1).Path(dir))
	if err != nil || len(entries) == 0 {
		h.t.Fatalf("the first agent has made no authority: %v", err)
	}
	for i := 2; i <= h.Nodes(); i++ {
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(h.Node(1).Path(dir), e.Name()))
			if err == nil {
				err = os.WriteFile(filepath.Join(h.Node(i).Path(dir), e.Name()), data, 0o600)
			}
			if err != nil {
				h.t.Fatal(err)
			}
		}
	}
}

// remove takes Conduit off a node, and compares what is left with what was there before.
func (h *byHand) remove(i int, before string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's own has ended
	defer cancel()
	node := h.Node(i)
	for _, command := range [][]string{{nodeBin + "/conduit-cni", "uninstall"}, {nodeBin + "/conduit-agent", "--uninstall"}} {
		if command[1] == "--uninstall" {
			if err := node.StopDaemon("conduit-agent"); err != nil {
				h.t.Error(err)
			}
		}
		if out, err := node.Run(ctx, command...); err != nil {
			h.t.Errorf("%v: %s", err, out)
		}
	}
	if after := h.configs(i); after != before {
		h.t.Errorf("node %d: the configuration was\n%s\nand is\n%s", i, before, after)
	}
}

// configs is every file of the configuration directory and the names of the plugins, as bytes.
func (h *byHand) configs(i int) string {
	h.t.Helper()
	var text strings.Builder
	for _, dir := range []string{confDir, "/opt/cni/bin"} {
		entries, err := os.ReadDir(h.Node(i).Path(dir))
		if err != nil {
			h.t.Fatal(err)
		}
		for _, e := range entries {
			fmt.Fprintln(&text, e.Name())
			if dir != confDir {
				continue
			}
			data, err := os.ReadFile(filepath.Join(h.Node(i).Path(dir), e.Name()))
			if err != nil {
				h.t.Fatal(err)
			}
			text.Write(data)
		}
	}
	return text.String()
}

// show gives all agents a manifest, in the place of one of the same name.
func (h *byHand) show(name string, object map[string]any) {
	h.t.Helper()
	data, err := json.Marshal(object)
	if err != nil {
		h.t.Fatal(err)
	}
	for i := 1; i <= h.Nodes(); i++ {
		file := h.Node(i).Path("/etc/conduit/manifests/" + name + ".json")
		if err := os.WriteFile(file+".new", data, 0o644); err != nil {
			h.t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			h.t.Fatal(err)
		}
	}
}

type object = map[string]any

// showNamespace and showPod say what the API server would.
func (h *byHand) showNamespace(name string, labels, annotations map[string]string) {
	h.t.Helper()
	h.show(name, object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": name, "labels": labels, "annotations": annotations}})
}

func (h *byHand) showPod(namespace, name string, node int, ip string) {
	h.t.Helper()
	pod := object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name, "namespace": namespace, "labels": object{"app": name}},
		"spec": object{"nodeName": h.Node(node).Name(), "serviceAccountName": "default", "containers": []object{{"name": "load", "image": kubetest.LoadImage,
			"readinessProbe": object{"tcpSocket": object{"port": kubetest.LoadPort}}}}}}
	if ip != "" {
		pod["status"] = object{"podIP": ip, "podIPs": []object{{"ip": ip}}}
	}
	h.show(namespace+"."+name, pod)
}

// metric sums a metric of a node, over the series that have all the labels given as NAME="VALUE".
func (h *byHand) metric(node int, name string, labels ...string) float64 {
	h.t.Helper()
	sum := 0.0
	for _, line := range strings.Split(h.Run(node, "curl", "-sSf", "http://127.0.0.1:4191/metrics"), "\n") {
		series, value, ok := strings.Cut(line, " ")
		if !ok || series != name && !strings.HasPrefix(series, name+"{") || !containsAll(series, labels) {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(value, &v); err != nil {
			h.t.Fatalf("metric %q: %v", line, err)
		}
		sum += v
	}
	return sum
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// Pods that a kubelet makes are wired by the plugin that the installer has chained, in the place of the real primary plugin's
// configuration: those of other namespaces work as before, and those of an enrolled one speak mTLS across nodes.
func TestPodsOfARealKubelet(t *testing.T) {
	c := kubetest.New(t)
	c.ImportLoad()
	plain := kubetest.View(t, c.Cluster)
	h := startByHand(t, c)
	h.showNamespace(plain.Namespace, nil, nil) // what the agent does not know it refuses: it may be enrolled
	h.showNamespace(c.Namespace, map[string]string{"conduit.io/mesh": "enabled"}, map[string]string{"conduit.io/mtls-mode": "STRICT"})
	for _, view := range []*kubetest.Cluster{plain, c} {
		h.showPod(view.Namespace, "client", 1, "")
		h.showPod(view.Namespace, "server", 2, "")
		view.Apply(kubetest.LoadPod("client", 1, nil) + kubetest.LoadPod("server", 2, nil))
	}
	plain.WaitReady("client", "server")
	c.WaitReady("client", "server")
	for _, view := range []*kubetest.Cluster{plain, c} {
		h.showPod(view.Namespace, "client", 1, view.PodIP("client"))
		h.showPod(view.Namespace, "server", 2, view.PodIP("server"))
	}
	for what, view := range map[string]*kubetest.Cluster{"not enrolled": plain, "enrolled": c} {
		server := view.PodIP("server") + ":9000"
		h.Eventually("pods that are "+what+" reach each other", func() error {
			return view.Load("client", server, "--requests", "1", "--timeout", "2s")
		})
		if err := view.Load("client", server, "--requests", "200", "--churn", "50"); err != nil {
			t.Errorf("pods that are %s: %v", what, err)
		}
	}
	if n := h.metric(2, "response_total", `direction="inbound"`, `tls="mtls"`); n < 200 {
		t.Errorf("the server's proxy has counted %v responses with mTLS, want 200 and more", n)
	}
	if err := plain.Load("client", c.PodIP("server")+":9000", "--requests", "1", "--timeout", "2s"); err == nil {
		t.Error("a pod that is not enrolled reaches one that wants mTLS")
	}
	for _, view := range []*kubetest.Cluster{plain, c} {
		view.Kubectl("delete", "pod", "client", "server", "--wait", "--timeout=60s")
	}
}
