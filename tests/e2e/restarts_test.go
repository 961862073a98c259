package e2e

import (
	"fmt"
	"strings"
	"time"

	"conduit.io/conduit/tests/cluster/machine"
)

// outage is something that is taken away for a while.
type outage struct {
	what    string
	end     func(*world) // takes it away
	again   func(*world) // gives it back
	red     []string     // what conduit check says meanwhile; none: nothing is wrong
	silence bool         // nothing but the load can be asked meanwhile
}

// stopped and started are an outage of a daemon.
func daemon(name string, of func(*world) []*machine.Machine, red ...string) outage {
	each := func(w *world, do func(*machine.Machine) error) {
		for _, m := range of(w) {
			if err := do(m); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	return outage{what: name, red: red,
		end: func(w *world) { each(w, func(m *machine.Machine) error { return m.StopDaemon(name) }) },
		again: func(w *world) {
			each(w, func(m *machine.Machine) error { return m.StartDaemon(machine.Daemon{Name: name}) })
		}}
}

func controlPlane(w *world) []*machine.Machine { return w.meshed.Machines()[:1] }
func allNodes(w *world) []*machine.Machine     { return w.meshed.Machines()[1:] }

// scale is an outage of the controller.
func (w *world) scale(replicas int) {
	w.meshed.Kubectl("-n", "conduit", "scale", "deployment/conduit-controller", fmt.Sprintf("--replicas=%d", replicas))
	w.meshed.Kubectl("-n", "conduit", "rollout", "status", "deployment/conduit-controller", "--timeout=90s")
}

// outages are those of everything that Conduit, or its cluster, is made of, but for the proxies.
var outages = []outage{
	{what: "controller", end: func(w *world) { w.scale(0) }, again: func(w *world) { w.scale(1) }, red: []string{"× the controller is ready"}},
	{what: "agent", end: func(w *world) { w.signalAgents("pause") }, again: func(w *world) { w.signalAgents("resume") }, red: []string{"× every node has an agent that is ready"}},
	{what: "agent, killed", end: func(w *world) { w.signalAgents("kill", "-s", "SIGKILL") }, again: func(*world) {}, silence: true},
	daemon("kube-apiserver", controlPlane, "× the API server answers"),
	daemon("etcd", controlPlane, "×"),
	daemon("containerd", allNodes),
	daemon("kubelet", allNodes),
	daemon("kube-proxy", allNodes),
}

// restarts takes everything away in turn, and gives it back.
func (w *world) restarts() {
	for _, o := range outages {
		began := time.Now()
		o.end(w)
		w.load.goOn("without " + o.what)
		if !o.silence {
			w.tells(o)
		}
		o.again(w)
		w.load.goOn(o.what + " is back")
		w.green()
		w.t.Logf("%s: %v", o.what, time.Since(began).Round(time.Second))
	}
}

// tells checks what is said of an outage.
func (w *world) tells(o outage) {
	w.meshed.Eventually("conduit check tells of "+o.what, func() error {
		said, err := tryConduit(w.meshed, "check", "--timeout", "10s")
		if (err == nil) != (len(o.red) == 0) {
			return fmt.Errorf("conduit check: %v\n%s", err, said)
		}
		for _, want := range o.red {
			if !strings.Contains(said, want) {
				return fmt.Errorf("conduit check does not say %q:\n%s", want, said)
			}
		}
		return nil
	})
}

// signalAgents has the container runtime do something to the agent of every node.
func (w *world) signalAgents(verb ...string) {
	for node := 1; node <= w.meshed.Nodes(); node++ {
		pod := w.meshed.Kubectl("-n", "conduit", "get", "pods", "-l", "app.kubernetes.io/component=agent", "--field-selector", fmt.Sprintf("spec.nodeName=node%d", node),
			"-o", `jsonpath={.items[0].status.containerStatuses[?(@.name=="agent")].containerID}`)
		w.meshed.Run(node, append(append([]string{"ctr", "-n", "k8s.io", "task"}, verb...), strings.TrimPrefix(pod, "containerd://"))...)
	}
}
