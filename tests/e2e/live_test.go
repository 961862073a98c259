package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"conduit.io/conduit/tests/cluster/kubetest"
)

// world is an installation under load: pods of the mesh, and, as a witness of what Kubernetes and this computer do by themselves, the
// same pods outside of it.
type world struct {
	t            *testing.T
	meshed       *kubetest.Cluster
	plain        *kubetest.Cluster
	nodes        *byHand
	view         *viewer
	load, beside *traffic
	spared       bool // what fails of the load during this step is known, and its own matter
}

// TestLive installs Conduit, and then does to it, under load, what people do to a cluster. Of the mesh's requests none may fail.
func TestLive(t *testing.T) {
	w := newWorld(t, kubetest.New(t))
	defer func() {
		if t.Failed() { // the tests that follow are judged by themselves
			_, _ = tryConduit(w.meshed, "uninstall", "--apply", "--timeout", "2m")
		}
	}()
	for _, step := range []struct {
		name string
		run  func(*world)
	}{
		{"addresses on the wire", (*world).podAddresses},
		{"unmesh and mesh", (*world).unmesh},
		{"agents and proxies replaced, STRICT", (*world).replaceStrict},
		{"restarts", (*world).restarts},
		{"a proxy lost, STRICT", (*world).proxyLost},
		{"upgrade", (*world).upgrade},
		{"rollout, PERMISSIVE", (*world).rollout},
		{"rollout, STRICT", (*world).rolloutStrict},
		{"uninstall", (*world).uninstall},
	} {
		if !t.Run(step.name, func(t *testing.T) { w.during(t, step.run) }) {
			t.FailNow()
		}
	}
	w.end(t)
}

// end stops the load, and says how much there was.
func (w *world) end(t *testing.T) {
	for _, tr := range []*traffic{w.load, w.beside} {
		sent, failed, _ := tr.stop()
		t.Logf("%s: %d requests, %d failed", tr.what, sent, failed)
	}
}

// newWorld installs Conduit, with more flags of the command, and starts the load.
func newWorld(t *testing.T, c *kubetest.Cluster, flags ...string) *world {
	t.Helper()
	w := &world{t: t, meshed: c}
	w.plain = kubetest.View(t, w.meshed.Cluster)
	w.nodes = &byHand{Cluster: w.meshed, t: t}
	w.meshed.ImportLoad()
	importImages(w.meshed)
	conduit(t, w.meshed, append([]string{"install", "--apply", "--wait", "--timeout", "2m", "--set", "image.tag=" + imagesVersion}, flags...)...)
	conduit(t, w.meshed, "mesh", "ns/"+w.meshed.Namespace, "--apply")
	for c, replicas := range map[*kubetest.Cluster]int{w.meshed: 10, w.plain: 3} {
		c.Apply(servers(replicas))
	}
	for _, c := range []*kubetest.Cluster{w.meshed, w.plain} {
		c.Kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	}
	w.view = newViewer(t, w.meshed)
	w.load, w.beside = startTraffic(t, w.meshed, "load in the mesh"), startTraffic(t, w.plain, "load beside it")
	w.well()
	w.encrypted(t)
	return w
}

// encrypted checks that the load goes through the proxies.
func (w *world) encrypted(t *testing.T) {
	t.Helper()
	for node := 1; node <= w.meshed.Nodes(); node++ {
		if n := w.nodes.metric(node, "response_total", `direction="inbound"`, `tls="mtls"`); n < rate {
			t.Errorf("the proxy of node %d has seen %v responses with mTLS", node, n)
		}
	}
}

// during runs a step, and judges how the load has fared.
func (w *world) during(t *testing.T, step func(*world)) {
	before, had := w.load.failures()
	control, hadBeside := w.beside.failures()
	outer := w.t
	w.t, w.view.t, w.spared = t, t, false
	defer func() {
		w.t, w.view.t = outer, outer
		after, has := w.load.failures()
		controlled, hasBeside := w.beside.failures()
		if n := controlled - control; n > 0 {
			t.Logf("beside the mesh %d failed:\n%s", n, strings.Join(newOf(hadBeside, hasBeside), "\n"))
		}
		switch n := after - before; {
		case n > 0 && w.spared:
			t.Logf("in the mesh %d failed, as was to be expected", n)
		case n > 0:
			t.Errorf("in the mesh %d failed:\n%s", n, strings.Join(newOf(had, has), "\n"))
		}
	}()
	step(w)
	w.load.goOn("after it")
	w.beside.goOn("after it")
}

// newOf is what is in after and not in before.
func newOf(before, after []string) (news []string) {
	known := map[string]int{}
	for _, s := range before {
		known[s]++
	}
	for _, s := range after {
		if known[s]--; known[s] < 0 {
			news = append(news, s)
		}
	}
	return news
}

// rollout replaces all servers.
func (w *world) rollout() {
	for _, c := range []*kubetest.Cluster{w.meshed, w.plain} {
		c.Kubectl("rollout", "restart", "deployment/web")
	}
	for _, c := range []*kubetest.Cluster{w.meshed, w.plain} {
		c.Kubectl("rollout", "status", "deployment/web", "--timeout=150s")
	}
}

// rolloutStrict is rollout, of pods that take no plaintext.
func (w *world) rolloutStrict() {
	w.strict(true)
	w.rollout()
	w.strict(false)
}

// strict changes the mode of the mesh's pods, and waits until they refuse plaintext, or take it.
func (w *world) strict(on bool) {
	mode := "PERMISSIVE"
	if on {
		mode = "STRICT"
	}
	w.meshed.Kubectl("annotate", "namespace", w.meshed.Namespace, "--overwrite", "conduit.io/mtls-mode="+mode)
	for node := 1; node <= w.meshed.Nodes(); node++ {
		w.meshed.Eventually(fmt.Sprintf("pods of node %d are %s", node, mode), func() error {
			var pods []struct{ Namespace, Name, Mode string }
			if err := json.Unmarshal([]byte(w.meshed.Run(node, "curl", "-sSf", "http://127.0.0.1:4191/debug/pods")), &pods); err != nil {
				return err
			}
			for _, p := range pods {
				if p.Namespace == w.meshed.Namespace && !strings.EqualFold(p.Mode, mode) {
					return fmt.Errorf("%s is %s", p.Name, p.Mode)
				}
			}
			return nil
		})
	}
}
