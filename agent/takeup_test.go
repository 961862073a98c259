package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"conduit.io/conduit/api/podapi"
)

// runtimeRecord writes what the container runtime remembers of pod's ADD, before any agent was there.
func (w *world) runtimeRecord(dir, pod string, n int) {
	w.t.Helper()
	text := fmt.Sprintf(`{"kind":"cniCacheV1","containerId":"c-%s","ifName":"eth0","networkName":"net","netns":%q,
		"cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME",%q]],
		"result":{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":%q}],
		"ips":[{"interface":0,"address":"%s/24"},{"interface":0,"address":"%s/64"}]}}`,
		pod, w.netns(pod), pod, w.netns(pod), w.addr(4, n), w.addr(6, n))
	if err := os.WriteFile(filepath.Join(dir, "net-c-"+pod+"-eth0"), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// Pods that ran before the agent are enrolled where they are: a connection that is open goes on untouched, new ones are steered, and
// from then on they are like any other. The same way a pod comes back whose record the agent has lost, with all that the kernel has.
func TestRanBefore(t *testing.T) {
	w := newWorld(t)
	records := t.TempDir()
	w.runtimeRecord(records, "a", 2)
	w.runtimeRecord(records, "b", 3)
	w.serve()
	w.write("disabled", "")
	before := w.client("a", true)
	if _, err := get(before, byPod); err != nil {
		t.Fatal(err)
	}
	w.start("--cni-cache", records)
	enrolled := func(want bool) func() error {
		return func() error {
			for _, name := range []string{"a", "b"} {
				if p := w.pod(name); p.Name == "" || p.Enrolled != want {
					return fmt.Errorf("pod %s: %+v", name, p)
				}
			}
			return nil
		}
	}
	w.eventually("the agent knows both pods", enrolled(false))
	w.write("enabled", "conduit.io/mtls-mode: STRICT")
	w.eventually("both pods are enrolled", enrolled(true))
	if got, err := get(before, byPod); err != nil || got != "10.99.0.2" {
		t.Errorf("the connection of before: %q, %v", got, err)
	}
	if n := w.pod("a").Counters.Steered; n != 0 {
		t.Errorf("%d connections steered, and none was made", n)
	}
	w.reach(byPod, "10.99.0.2")
	w.reach(bySix, "fd99::2")
	if n := w.pod("a").Counters.Steered; n != 2 {
		t.Errorf("%d new connections steered, want 2", n)
	}
	w.must(podapi.Check, "a", true)

	kept := w.client("a", true)
	if _, err := get(kept, byPod); err != nil {
		t.Fatal(err)
	}
	w.kill()
	if err := os.RemoveAll(filepath.Join(w.run(), podsDir)); err != nil {
		t.Fatal(err)
	}
	w.start("--cni-cache", records)
	w.eventually("both pods are enrolled as before", enrolled(true))
	if got, err := get(kept, byPod); err != nil || got != "10.99.0.2" {
		t.Errorf("a steered connection, after the record was lost: %q, %v", got, err)
	}
	w.reach(byPod, "10.99.0.2")
	w.must(podapi.Check, "b", true)

	// The runtime deletes: its record goes last.
	w.must(podapi.Del, "a", false)
	w.write("enabled", "") // a change makes the agent look at all pods
	w.eventually("the change has come", func() error {
		if p := w.pod("b"); p.Mode != "PERMISSIVE" {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	if p := w.pod("a"); p.Name != "" || w.leftovers("a") != 0 {
		t.Errorf("deleted, and back: %+v", p)
	}
	w.must(podapi.Del, "b", false)
	if _, err := os.Stat(filepath.Join(w.run(), podsDir, "c-b-eth0.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the attachment is still stored: %v", err)
	}
}
