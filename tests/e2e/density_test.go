package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/cluster/kubetest"
)

// idlePods is how many pods a kubelet takes by default.
const idlePods = 110

// BenchmarkIdlePods is what a node with as many pods as it takes needs of memory: all of them enrolled, and silent.
func BenchmarkIdlePods(b *testing.B) {
	c := kubetest.New(b)
	importImages(c)
	conduit(b, c, "install", "--apply", "--wait", "--timeout", "2m", "--set", "image.tag="+imagesVersion)
	defer conduit(b, c, "uninstall", "--apply", "--timeout", "3m")
	conduit(b, c, "mesh", "ns/"+c.Namespace, "--apply")
	for b.Loop() {
		report := func(when string) {
			for program, most := range map[string]float64{"conduit-agent": 40, "conduit-proxy": 12, "conduit-cni": 8} {
				rss, anon := memory(b, c, 2, program)
				if rss > most {
					b.Errorf("%s, %s: %.1f MB resident, and at most %v are wanted", program, when, rss, most)
				}
				b.ReportMetric(rss, program+"-"+when+"-RSS-MB")
				b.ReportMetric(anon, program+"-"+when+"-anon-MB")
			}
		}
		report("empty")
		began := time.Now()
		for i := 0; i < idlePods; i += 10 { // a burst of all would measure the container runtime
			var pods strings.Builder
			wait := []string{"wait", "--for=condition=conduit.io/Enrolled", "--timeout=90s"} // of these alone: kubectl asks for one after the other
			for k := range 10 {
				wait = append(wait, fmt.Sprintf("pod/idle-%d", i+k))
				fmt.Fprintf(&pods, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"idle-%d"},"spec":{"nodeName":%q,"terminationGracePeriodSeconds":0,`+
					`"containers":[{"name":"pause","image":"localhost/pause:1","imagePullPolicy":"Never"}]}}`+"\n---\n", i+k, c.Node(2).Name())
			}
			c.Apply(pods.String())
			c.Kubectl(wait...)
		}
		b.ReportMetric(time.Since(began).Seconds()/idlePods*1000, "ms/pod")
		report("full")
		c.Kubectl("delete", "pod", "--all", "--wait", "--timeout=150s")
	}
	b.ReportMetric(0, "ns/op") // says nothing
}

// memory is the resident and the anonymous memory of the node's processes of that name, in MB.
func memory(b *testing.B, c *kubetest.Cluster, node int, program string) (rss, anon float64) {
	b.Helper()
	pids := strings.Fields(c.Run(node, "sh", "-c", "grep -lx "+program+" /proc/[0-9]*/comm | cut -d/ -f3"))
	if len(pids) == 0 {
		b.Fatalf("no %s runs on node %d", program, node)
	}
	for _, pid := range pids {
		for line := range strings.Lines(c.Run(node, "cat", "/proc/"+pid+"/status")) {
			var kb float64
			if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kb); n == 1 {
				rss += kb / 1000
			} else if n, _ := fmt.Sscanf(line, "RssAnon: %f kB", &kb); n == 1 {
				anon += kb / 1000
			}
		}
	}
	return rss, anon
}
