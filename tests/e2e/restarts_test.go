package e2e

import (
	"cmp"
	"fmt"
	"slices"
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
	listed  string       // the state of every node meanwhile, by ListNodes; empty: ready
	mute    bool         // ListNodes may have no answer, but no other one
	deaf    bool         // the API server has none
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

// without is o where nobody can ask the API server, and the controller neither whose a token is.
func (o outage) without() outage {
	o.mute, o.deaf = true, true
	return o
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
	{what: "controller", end: func(w *world) { w.scale(0) }, again: func(w *world) { w.scale(1) }, red: []string{"× the controller is ready"}, listed: "nothing"},
	{what: "agent", end: func(w *world) { w.signalAgents("pause") }, again: func(w *world) { w.signalAgents("resume") }, red: []string{"× every node has an agent that is ready"}, listed: silent},
	{what: "agent, killed", end: func(w *world) { w.signalAgents("kill", "-s", "SIGKILL") }, again: func(*world) {}, silence: true},
	daemon("kube-apiserver", controlPlane, "× the API server answers").without(),
	daemon("etcd", controlPlane, "×").without(),
	daemon("containerd", allNodes),
	daemon("kubelet", allNodes),
	daemon("kube-proxy", allNodes),
}

// restarts takes everything away in turn, and gives it back.
func (w *world) restarts() {
	for _, o := range outages {
		began, were := time.Now(), w.instances()
		o.end(w)
		w.load.goOn("without " + o.what)
		if !o.silence {
			w.tells(o)
		}
		o.again(w)
		w.load.goOn(o.what + " is back")
		w.well()
		if is := w.instances(); o.silence && slices.ContainsFunc(is, func(i string) bool { return slices.Contains(were, i) }) {
			w.t.Errorf("%s: the agents were %v, and are %v", o.what, were, is)
		}
		w.t.Logf("%s: %v", o.what, time.Since(began).Round(time.Second))
	}
}

// tells checks what is said of an outage.
func (w *world) tells(o outage) {
	patience := "10s"
	if o.deaf {
		patience = "3s"
	}
	w.meshed.Eventually("conduit check tells of "+o.what, func() error {
		said, err := tryConduit(w.meshed, "check", "--timeout", patience)
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
	w.view.hasty = o.deaf // or nodes would count as lost, 40 s after they could last say that they live
	defer func() { w.view.hasty = false }()
	w.view.everywhere("without "+o.what, func(nodes []listed, err error) error {
		switch {
		case err != nil && (o.mute || o.listed == "nothing"):
			return nil // it says that it does not know
		case o.listed == "nothing":
			return fmt.Errorf("it says %+v", nodes)
		}
		return w.view.all(cmp.Or(o.listed, ready))(nodes, err)
	})
	if o.deaf {
		return
	}
	if err := w.objects(); err != nil { // the kernel steers them, whoever is away
		w.t.Errorf("without %s: %v", o.what, err)
	}
}

// instances are the lives of the agents.
func (w *world) instances() (of []string) {
	w.view.everywhere("agents live", func(nodes []listed, err error) error {
		of = nil
		for _, n := range nodes {
			of = append(of, n.Agent.Instance)
		}
		return err
	})
	return of
}

// signalAgents has the container runtime do something to the agent of every node.
func (w *world) signalAgents(verb ...string) {
	for node := 1; node <= w.meshed.Nodes(); node++ {
		w.signal(node, "agent", verb...)
	}
}

// signal has the container runtime do something to a container of the node's agent.
func (w *world) signal(node int, container string, verb ...string) {
	w.meshed.Eventually(fmt.Sprintf("%v container %s of node %d", verb, container, node), func() error { // what the API server has may be older than the container
		id, err := w.meshed.Try("-n", "conduit", "get", "pods", "-l", "app.kubernetes.io/component=agent", "--field-selector", fmt.Sprintf("spec.nodeName=node%d", node),
			"-o", fmt.Sprintf(`jsonpath={.items[0].status.containerStatuses[?(@.name==%q)].containerID}`, container))
		if err == nil {
			_, err = w.meshed.Node(node).Run(w.meshed.Context(), append(append([]string{"ctr", "-n", "k8s.io", "task"}, verb...), strings.TrimPrefix(id, "containerd://"))...)
		}
		return err
	})
}
