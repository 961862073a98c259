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

	"conduit.io/conduit/cni/install"
	"conduit.io/conduit/tests/cluster/kube"
	"conduit.io/conduit/tests/cluster/kubetest"
	"conduit.io/conduit/tests/program"
	"conduit.io/conduit/tests/stopwatch"
)

// added is how many pods are made, on all nodes together.
const added = 200

// stopwatches is where, on a node, the stopwatches write.
const stopwatches = "/var/lib/e2e/stopwatch"

// BenchmarkAdd is what Conduit adds to the making of an enrolled pod: the time between a stopwatch before its plugin in the chain and one
// behind it, the start of its process and the agent's work included, less what the stopwatches take by themselves. Pods are made one after
// the other, and ten at once.
func BenchmarkAdd(b *testing.B) {
	c := kubetest.New(b)
	importImages(c)
	conduit(b, c, "install", "--apply", "--wait", "--timeout", "2m", "--set", "image.tag="+imagesVersion)
	defer conduit(b, c, "uninstall", "--apply", "--timeout", "3m")
	conduit(b, c, "mesh", "ns/"+c.Namespace, "--apply")
	for node := 1; node <= c.Nodes(); node++ {
		defer timed(b, c, node)()
	}
	for _, atOnce := range []int{1, 10} {
		b.Run(fmt.Sprintf("at-once=%d", atOnce), func(b *testing.B) {
			for b.Loop() {
				for i := 0; i < added; i += atOnce {
					makePods(b, c, i, atOnce)
				}
				c.Kubectl("delete", "pod", "--all", "--wait", "--timeout=150s")
			}
			var all stopwatch.Times
			for node := 1; node <= c.Nodes(); node++ {
				t, err := stopwatch.Take(c.Node(node).Path(stopwatches))
				if err != nil {
					b.Fatal(err)
				}
				all.Add(t)
			}
			if len(all.Plugin) < added {
				b.Fatalf("%d of %d pods were timed", len(all.Plugin), added)
			}
			all.Report(b)
		})
	}
}

// makePods makes some pods at once, numbered from first on, on one node after the other, and waits for them: for one alone until its ADD is
// over, since to ask Kubernetes 200 times would take minutes.
func makePods(b *testing.B, c *kubetest.Cluster, first, count int) {
	b.Helper()
	var pods strings.Builder
	wait := []string{"wait", "--for=condition=conduit.io/Enrolled", "--timeout=90s"} // of these alone: kubectl asks for one after the other
	for i := first; i < first+count; i++ {
		wait = append(wait, fmt.Sprintf("pod/added-%d", i))
		fmt.Fprintf(&pods, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"added-%d"},"spec":{"nodeName":%q,"terminationGracePeriodSeconds":0,`+
			`"containers":[{"name":"pause","image":"localhost/pause:1","imagePullPolicy":"Never"}]}}`+"\n---\n", i, c.Node(1+i%c.Nodes()).Name())
	}
	c.Apply(pods.String())
	if count > 1 {
		c.Kubectl(wait...)
		return
	}
	ctx, cancel := context.WithTimeout(b.Context(), 90*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for timedPods(b, c) <= first {
		select {
		case <-ctx.Done():
			b.Fatalf("pod added-%d: %v", first, ctx.Err())
		case <-tick.C:
		}
	}
}

// timedPods counts the pods that have come past the last stopwatch.
func timedPods(b *testing.B, c *kubetest.Cluster) (n int) {
	b.Helper()
	for node := 1; node <= c.Nodes(); node++ {
		files, err := filepath.Glob(filepath.Join(c.Node(node).Path(stopwatches), "*.c"))
		if err != nil {
			b.Fatal(err)
		}
		n += len(files)
	}
	return n
}

// timed puts stopwatches around the plugin of a node.
func timed(b *testing.B, c *kubetest.Cluster, node int) (undo func()) {
	b.Helper()
	dir := b.TempDir()
	if err := program.Build(dir, stopwatch.Package); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "plugin"), c.Node(node).Path("/opt/cni/bin/"+stopwatch.Type)); err != nil {
		b.Fatal(err)
	}
	c.Run(node, "mkdir", "-p", stopwatches)
	file := c.Node(node).Path(kube.CNIConfig)
	before, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	var conf map[string]any
	if err := json.Unmarshal(before, &conf); err != nil {
		b.Fatal(err)
	}
	plugins, _ := conf["plugins"].([]any)
	if conf["plugins"], err = stopwatch.Around(plugins, install.PluginType, stopwatches); err != nil {
		b.Fatal(err)
	}
	write := func(data []byte) {
		if err := os.WriteFile(file+".new", data, 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			b.Fatal(err)
		}
	}
	data, err := json.Marshal(conf)
	if err != nil {
		b.Fatal(err)
	}
	write(data)
	return func() { write(before) }
}
