package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/cni/install"
	"conduit.io/conduit/tests/cluster/kube"
	"conduit.io/conduit/tests/cluster/kubetest"
)

// dns is the Deployment of the cluster's DNS.
const dns = "deployment/coredns"

// tainted makes the cluster one whose nodes have all begun with the taint: the cluster's DNS waits for agents, too.
func (l *life) tainted() {
	l.Kubectl("taint", "nodes", "--all", "conduit.io/agent-not-ready=:NoSchedule")
	l.Kubectl("-n", "kube-system", "patch", dns, "--type=json", "-p", `[{"op":"remove","path":"/spec/template/spec/tolerations"},{"op":"replace","path":"/spec/strategy","value":{"type":"Recreate"}}]`)
	l.Eventually("the cluster has no DNS", func() error {
		if phases := l.Kubectl("-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[*].status.phase}"); phases != "Pending" {
			return fmt.Errorf("its pods are %s", phases)
		}
		return nil
	})
}

// untainted: agents have found the controller without DNS, the taint is off, and what waited for that runs.
func (l *life) untainted() {
	l.Eventually("no node is tainted", func() error {
		if said := l.Kubectl("get", "nodes", "-o", "jsonpath={.items[*].spec.taints}"); said != "" {
			return fmt.Errorf("%s", said)
		}
		return nil
	})
	l.Kubectl("-n", "kube-system", "rollout", "status", dns, "--timeout=60s")
}

// primaryUpgraded does what the upgrade of a primary plugin does on a node: its program is another one, and its configuration is written anew, under
// a name that comes before the old one's, which goes. The plugin is chained into that, and pods go on becoming part of the mesh.
func (l *life) primaryUpgraded() {
	const file = "/etc/cni/net.d/05-primary-v2.conflist"
	node := l.Node(2)
	old, err := os.ReadFile(node.Path(kube.CNIConfig))
	if err != nil {
		l.t.Fatal(err)
	}
	var conf map[string]any
	if err := json.Unmarshal(old, &conf); err != nil {
		l.t.Fatal(err)
	}
	plugins, _ := conf["plugins"].([]any)
	conf["plugins"], conf["x-release"] = plugins[:len(plugins)-1], "v2" // Conduit's is the last
	primary, _ := plugins[0].(map[string]any)
	written, err := json.MarshalIndent(conf, "", "\t")
	if err != nil || strings.Contains(string(written), install.PluginType) {
		l.t.Fatalf("%s, %v", written, err)
	}
	put := func(path string, data []byte) {
		l.t.Helper()
		if err := os.WriteFile(node.Path(path)+".tmp", data, 0o644); err != nil {
			l.t.Fatal(err)
		}
		if err := os.Rename(node.Path(path)+".tmp", node.Path(path)); err != nil {
			l.t.Fatal(err)
		}
	}
	l.Run(2, "sh", "-c", fmt.Sprintf("cd /opt/cni/bin && cp %[1]s .new && mv .new %[1]s", primary["type"]))
	put(file, written)
	chained := func(path string) {
		l.t.Helper()
		l.Eventually("the plugin is chained into "+path, func() error {
			data, err := os.ReadFile(node.Path(path))
			if err == nil && strings.Count(string(data), `"`+install.PluginType+`"`) != 1 {
				err = fmt.Errorf("%s", data)
			}
			return err
		})
	}
	chained(file)
	l.Run(2, "rm", kube.CNIConfig)
	l.Apply(kubetest.LoadPod("after-upgrade", 2, nil))
	l.WaitReady("after-upgrade")
	l.await("after-upgrade", "True Enrolled =")
	if err := l.Load("after-upgrade", l.PodIP("client")+":9000", "--requests", "20"); err != nil {
		l.t.Errorf("a pod after the upgrade: %v", err)
	}
	put(kube.CNIConfig, old) // as it was, for what follows
	l.Run(2, "rm", file)
	chained(kube.CNIConfig)
	l.Kubectl("delete", "pod", "after-upgrade", "--wait", "--timeout=60s")
}

// installWithin is how long a fresh cluster may take to be all green.
const installWithin = time.Minute

// BenchmarkInstall is the time that it takes to install Conduit on a fresh cluster of two nodes that have its images, until all is green.
func BenchmarkInstall(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		opts := kubetest.Options("e2e")
		opts.Name += "-install"
		c := kubetest.Start(b, opts)
		importImages(c)
		b.StartTimer()
		began := time.Now()
		conduit(b, c, "install", "--apply", "--wait", "--timeout", "3m", "--set", "image.tag="+imagesVersion)
		conduit(b, c, "check")
		if took := time.Since(began); took > installWithin {
			b.Errorf("it took %v, and %v are wanted", took, installWithin)
		} else {
			b.ReportMetric(took.Seconds(), "s")
		}
	}
	b.ReportMetric(0, "ns/op") // says nothing
}
