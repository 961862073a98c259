package e2e

import (
	"fmt"
	"strings"
	"testing"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/tests/cluster/kubetest"
)

// imagesVersion is the tag of the images under test.
const imagesVersion = "e2e"

// importImages makes Conduit's images, and imports them on every node.
func importImages(c *kubetest.Cluster) { c.ImportConduit(binDir, imagesVersion) }

// tryConduit is conduit, for what may fail.
func tryConduit(c *kubetest.Cluster, args ...string) (string, error) {
	return c.Conduit(binDir, args...)
}

// conduit runs the command line of Conduit on the cluster, and returns what it said.
func conduit(t testing.TB, c *kubetest.Cluster, args ...string) string {
	t.Helper()
	said, err := tryConduit(c, args...)
	if err != nil {
		for _, pods := range []string{"component=controller", "component=agent", "component=uninstall"} {
			logs, _ := c.Try("-n", "conduit", "logs", "-l", "app.kubernetes.io/"+pods, "--all-containers", "--prefix", "--tail=20")
			said += logs
		}
		t.Fatalf("conduit %s: %v\n%s", strings.Join(args, " "), err, said)
	}
	t.Logf("conduit %s\n%s", strings.Join(args, " "), said)
	return said
}

// Conduit is installed, pods start in the mesh and speak mTLS across nodes, and everything is taken away again.
func TestInstall(t *testing.T) {
	c := kubetest.New(t)
	c.ImportLoad()
	importImages(c)
	c.ImportProgram(probedImage, "conduit.io/conduit/tests/e2e/probed")
	nodes := &byHand{Cluster: c, t: t}
	before := footprint(t, c)
	conduit(t, c, "check", "--pre")
	conduit(t, c, "install", "--apply", "--wait", "--timeout", "2m", "--set", "image.tag="+imagesVersion, "--set", "proxy.sameNode=link")
	conduit(t, c, "check")
	c.Apply(kubetest.LoadPod("client", 1, nil) + kubetest.LoadPod("server", 2, nil))
	c.WaitReady("client", "server")
	// PERMISSIVE, the default: mTLS wherever both ends can.
	conduit(t, c, "mesh", "ns/"+c.Namespace, "--apply", "--wait")
	if err := c.Load("client", c.PodIP("server")+":9000", "--requests", "200", "--churn", "50"); err != nil {
		t.Errorf("enrolled pods: %v", err)
	}
	if n := nodes.metric(2, "response_total", `direction="inbound"`, `tls="mtls"`); n < 200 {
		t.Errorf("the server's proxy has seen %v responses with mTLS, want 200 and more", n)
	}
	for i := 1; i <= c.Nodes(); i++ { // what has to be gone in the end is seen while it is there
		if programs, rules := attached(t, c, i), steering(c, i); len(programs) < 7 || len(rules) < 4 {
			t.Errorf("node %d: programs %q, rules and routes %q", i, programs, rules)
		}
	}
	conduit(t, c, "check")
	t.Run("reach", func(t *testing.T) { reach(t, nodes) })
	t.Run("policy", func(t *testing.T) { policy(t, nodes) })
	t.Run("services", func(t *testing.T) { services(t, c) })
	c.Kubectl("annotate", "namespace", c.Namespace, kube.AnnotationMode+"=STRICT")
	c.Apply(probedPod(1))
	c.WaitReady("probed")
	t.Run("probes", func(t *testing.T) { probes(t, nodes) })

	said := conduit(t, c, "uninstall", "--apply", "--timeout", "2m")
	if want := fmt.Sprintf("verified: %d nodes clean, 0 objects left", c.Nodes()); !strings.Contains(said, want) || !strings.Contains(said, "verified 0 programs") {
		t.Errorf("uninstall does not say %q", want)
	}
	sameFootprint(t, c, before)
	left(t, c, "client", "server")
	if err := c.Load("client", c.PodIP("server")+":9000", "--requests", "100"); err != nil {
		t.Errorf("pods that have left the mesh: %v", err)
	}
}

// left checks that of pods which have been in the mesh nothing says so: neither a condition, nor a rule or route in their namespaces.
func left(t *testing.T, c *kubetest.Cluster, pods ...string) {
	t.Helper()
	for _, pod := range pods {
		if conditions := c.Kubectl("get", "pod", pod, "-o", "jsonpath={.status.conditions[*].type}"); strings.Contains(conditions, "conduit.io") {
			t.Errorf("pod %s has the conditions %s", pod, conditions)
		}
	}
	for i := 1; i <= c.Nodes(); i++ {
		if lines := steering(c, i); len(lines) > 0 {
			t.Errorf("in the namespaces of pods on node %d:\n%s", i, strings.Join(lines, "\n"))
		}
	}
}

// steering are rules and routes of Conduit's in the network namespaces of a node's pods.
func steering(c *kubetest.Cluster, node int) (lines []string) {
	const show = "for f in -4 -6; do ip $f rule; ip $f route show table 100 2>/dev/null; done; true"
	for line := range strings.Lines(c.Run(node, "sh", "-c", "for n in /run/netns/*; do nsenter --net=$n sh -c '"+show+"'; done")) {
		if strings.Contains(line, "fwmark") || strings.HasPrefix(line, "local default") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}
