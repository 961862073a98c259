package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/cni/install"
	"conduit.io/conduit/tests/cluster/kube"
	"conduit.io/conduit/tests/cluster/kubetest"
)

// added is how many pods are made, and addedAtOnce how many of them together, on each node.
const (
	added       = 200
	addedAtOnce = 5
)

// stopwatches is where, on a node, the stopwatches write.
const stopwatches = "/var/lib/e2e/stopwatch"

// BenchmarkAdd is what Conduit adds to the making of an enrolled pod: the time between a stopwatch before its plugin in the chain and one
// behind it, the start of its process and the agent's work included, less what the stopwatches take by themselves.
func BenchmarkAdd(b *testing.B) {
	c := kubetest.New(b)
	importImages(b, c)
	conduit(b, c, "install", "--apply", "--wait", "--timeout", "2m", "--set", "image.tag="+imagesVersion)
	defer conduit(b, c, "uninstall", "--apply", "--timeout", "3m")
	conduit(b, c, "mesh", "ns/"+c.Namespace, "--apply")
	for node := 1; node <= c.Nodes(); node++ {
		defer timed(b, c, node)()
	}
	for b.Loop() {
		for i := 0; i < added; i += addedAtOnce * c.Nodes() {
			var pods strings.Builder
			wait := []string{"wait", "--for=condition=conduit.io/Enrolled", "--timeout=90s"} // of these alone: kubectl asks for one after the other
			for k := range addedAtOnce * c.Nodes() {
				wait = append(wait, fmt.Sprintf("pod/added-%d", i+k))
				fmt.Fprintf(&pods, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"added-%d"},"spec":{"nodeName":%q,"terminationGracePeriodSeconds":0,`+
					`"containers":[{"name":"pause","image":"localhost/pause:1","imagePullPolicy":"Never"}]}}`+"\n---\n", i+k, c.Node(1+k%c.Nodes()).Name())
			}
			c.Apply(pods.String())
			c.Kubectl(wait...)
		}
		c.Kubectl("delete", "pod", "--all", "--wait", "--timeout=150s")
	}
	var ours, empty []time.Duration
	for node := 1; node <= c.Nodes(); node++ {
		o, e := took(b, c, node)
		ours, empty = append(ours, o...), append(empty, e...)
	}
	if len(ours) < added {
		b.Fatalf("%d of %d pods were timed", len(ours), added)
	}
	base := quantile(empty, 0.5)
	for name, q := range map[string]float64{"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1} {
		b.ReportMetric(float64(quantile(ours, q)-base)/1e6, name+"-ms")
		b.ReportMetric(float64(quantile(empty, q))/1e6, "stopwatch-"+name+"-ms")
	}
	b.ReportMetric(0, "ns/op") // says nothing
}

func quantile(all []time.Duration, q float64) time.Duration {
	slices.Sort(all)
	return all[min(len(all)-1, int(q*float64(len(all))))]
}

// timed puts stopwatches around the plugin of a node: one before it, and two behind it, which time themselves.
func timed(b *testing.B, c *kubetest.Cluster, node int) (undo func()) {
	b.Helper()
	build := exec.Command("go", "build", "-o", c.Node(node).Path("/opt/cni/bin/stopwatch"), "./stopwatch")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
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
	watch := func(mark string) any { return object{"type": "stopwatch", "dir": stopwatches, "mark": mark} }
	plugins, _ := conf["plugins"].([]any)
	at := slices.IndexFunc(plugins, func(p any) bool {
		plugin, ok := p.(object)
		return ok && plugin["type"] == install.PluginType
	})
	if at < 0 {
		b.Fatalf("the chain has no %s:\n%s", install.PluginType, before)
	}
	conf["plugins"] = slices.Insert(slices.Insert(plugins, at+1, watch("b"), watch("c")), at, watch("a"))
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

// took is what the stopwatches of a node say: of the plugin, and of a stopwatch itself.
func took(b *testing.B, c *kubetest.Cluster, node int) (plugin, empty []time.Duration) {
	b.Helper()
	dir := c.Node(node).Path(stopwatches)
	files, err := filepath.Glob(filepath.Join(dir, "*.c"))
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range files {
		var at [3]int64
		for i, mark := range []string{"a", "b", "c"} {
			data, err := os.ReadFile(strings.TrimSuffix(f, "c") + mark)
			if err == nil {
				at[i], err = strconv.ParseInt(string(data), 10, 64)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		plugin, empty = append(plugin, time.Duration(at[1]-at[0])), append(empty, time.Duration(at[2]-at[1]))
	}
	return plugin, empty
}
