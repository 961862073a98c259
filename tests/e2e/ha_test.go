package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/cluster/kubetest"
)

// TestHA takes the replica of the controller that leads away, in three ways, on three nodes and under load: another one writes, agents
// go to the others, pods that are made meanwhile become part of the mesh, no request fails, and what is asked says what is so.
func TestHA(t *testing.T) {
	opts := kubetest.Options("e2e")
	opts.Name, opts.Nodes = opts.Name+"-ha", 3
	w := newWorld(t, kubetest.Start(t, opts), "--values", "../../deploy/chart/values-ha.yaml")
	if n := len(w.view.replicas); n != 3 {
		t.Fatalf("%d replicas", n)
	}
	own := w.newAuthority()
	step := func(name string, run func(*world)) {
		if !t.Run(name, func(t *testing.T) { w.during(t, run) }) {
			t.FailNow()
		}
	}
	for _, loss := range []loss{
		{"its pod is deleted", func(w *world, of *leader) {
			w.meshed.Kubectl("-n", "conduit", "delete", "pod", of.pod, "--wait=false")
		}, nil, true},
		{"its process is killed", func(w *world, of *leader) { // the kubelet starts it anew, and it may lead again
			w.meshed.Run(of.node, "ctr", "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", of.container)
		}, nil, false},
		{"its network is gone", func(w *world, of *leader) { w.meshed.Run(of.node, "ip", "route", "add", "blackhole", of.ip) },
			func(w *world, of *leader) { w.meshed.Run(of.node, "ip", "route", "del", "blackhole", of.ip) }, true},
	} {
		if loss.again != nil { // no replica is started anew from now on
			step("another issuer is handed in", func(w *world) { w.handIn(own) })
		}
		step(loss.what, func(w *world) { w.lose(loss) })
	}
	step("issuer, root and certificates rotate", func(w *world) { w.rotate(own) })
	w.end(t)
	conduit(t, w.meshed, "uninstall", "--apply", "--timeout", "150s")
}

// loss is a way to lose the leader.
type loss struct {
	what  string
	end   func(*world, *leader)
	again func(*world, *leader) // nil: it comes back by itself
	moves bool                  // another replica leads then
}

// leader is the replica that leads.
type leader struct {
	pod, ip, container string
	node               int
}

// leader finds it.
func (w *world) leader() *leader {
	w.t.Helper()
	l := &leader{}
	w.meshed.Eventually("somebody leads", func() error {
		holder, err := w.meshed.Try("-n", "conduit", "get", "lease", "conduit-controller", "-o", "jsonpath={.spec.holderIdentity}")
		if err != nil {
			return err
		}
		said, err := w.meshed.Try("-n", "conduit", "get", "pods", "-l", "app.kubernetes.io/component=controller", "-o", "json")
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Spec     struct{ NodeName string }
				Status   struct {
					PodIP             string
					ContainerStatuses []struct{ ContainerID string }
				}
			}
		}
		if err == nil {
			err = json.Unmarshal([]byte(said), &list)
		}
		for _, p := range list.Items {
			if p.Status.PodIP != "" && strings.Contains(holder, "["+p.Status.PodIP+"]") && len(p.Status.ContainerStatuses) == 1 {
				l.pod, l.ip, l.container = p.Metadata.Name, p.Status.PodIP, strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
				_, err = fmt.Sscanf(p.Spec.NodeName, "node%d", &l.node)
				return err
			}
		}
		return fmt.Errorf("the Lease is %q's, %w", holder, err)
	})
	return l
}

// lose takes the leader away, and back.
func (w *world) lose(loss loss) {
	was, began := w.leader(), time.Now()
	w.t.Logf("%s leads, on node %d", was.pod, was.node)
	loss.end(w, was)
	if loss.moves {
		w.meshed.Eventually("another replica leads", func() error {
			if is := w.leader(); is.pod == was.pod {
				return fmt.Errorf("it is still %s", is.pod)
			}
			return nil
		})
		w.t.Logf("another one leads after %v", time.Since(began).Round(100*time.Millisecond))
	}
	made := fmt.Sprintf("made-%d", time.Now().Unix())
	for node := 1; node <= w.meshed.Nodes(); node++ {
		w.meshed.Apply(kubetest.LoadPod(fmt.Sprint(made, "-", node), node, nil))
	}
	for node := 1; node <= w.meshed.Nodes(); node++ {
		w.meshed.Kubectl("wait", "--for=condition=conduit.io/Enrolled", "--timeout=120s", "pod/"+fmt.Sprint(made, "-", node))
	}
	w.t.Logf("pods that were made meanwhile are said to be enrolled after %v", time.Since(began).Round(100*time.Millisecond))
	w.load.goOn("while the one before is away")
	w.others(was, loss.again != nil)
	for node := 1; node <= w.meshed.Nodes(); node++ {
		pod, next := fmt.Sprint(made, "-", node), fmt.Sprint(made, "-", node%w.meshed.Nodes()+1)
		w.meshed.Eventually("pods that were made meanwhile reach each other", func() error {
			return w.meshed.Load(pod, w.meshed.PodIP(next)+":9000", "--requests", "20")
		})
	}
	if loss.again != nil {
		loss.again(w, was)
	}
	w.meshed.Kubectl("-n", "conduit", "rollout", "status", "deployment/conduit-controller", "--timeout=150s")
	w.well()
}

// others waits until every other replica says that all nodes are ready: agents report to who leads now, through whichever they reach.
func (w *world) others(than *leader, cut bool) {
	w.view.look()
	w.view.replicas = slices.DeleteFunc(w.view.replicas, func(ip string) bool { return ip == than.ip })
	if cut {
		if nodes, err := w.view.ask(than.ip); err == nil {
			w.t.Errorf("who is cut off says %+v", nodes)
		}
	}
	w.view.everywhere("all nodes are ready, although one replica is away", w.view.all(ready))
}
