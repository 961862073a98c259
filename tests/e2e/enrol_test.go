package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"conduit.io/conduit/tests/cluster/kubetest"
	"conduit.io/conduit/tests/cluster/machine"
)

// life is an installation, and pods that ran before it.
type life struct {
	*kubetest.Cluster
	t     *testing.T
	nodes *byHand
}

// TestEnrol follows pods through all the ways into the mesh, and past it. The steps share one installation, and build on each other.
func TestEnrol(t *testing.T) {
	c := kubetest.New(t)
	c.ImportLoad()
	importImages(c)
	l := &life{Cluster: c, t: t, nodes: &byHand{Cluster: c, t: t}}
	c.Apply(kubetest.LoadPod("client", 1, nil) + kubetest.LoadPod("server", 2, nil))
	c.WaitReady("client", "server")
	// One connection, open from before there is a mesh until long after.
	l.run("keeper", 1, []string{"run", "--target", c.PodIP("server") + ":9000", "--protocol", "http1", "--mode", "open", "--rate", "10", "--requests", "700"}, nil)
	c.WaitReady("keeper")
	l.tainted()
	conduit(t, c, "install", "--apply", "--wait", "--timeout", "2m", "--set", "image.tag="+imagesVersion)
	defer conduit(t, c, "uninstall", "--apply", "--timeout", "2m")
	for _, step := range []struct {
		name string
		run  func(*life)
	}{
		{"nodes that waited for their agents", (*life).untainted},
		{"pods that ran before are enrolled where they are", (*life).ranBefore},
		{"a bypass is told, and repaired", (*life).bypassed},
		{"refused, and opted out", (*life).refused},
		{"jobs and init containers", (*life).jobs},
		{"the primary plugin is upgraded", (*life).primaryUpgraded},
		{"no agent, no pod", (*life).failsClosed},
		{"the bypass is over", (*life).recovered},
		{"a node starts anew", (*life).reboot},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			outer := l.t
			l.t, l.nodes.t = t, t
			defer func() { l.t, l.nodes.t = outer, outer }()
			step.run(l)
		}) {
			t.FailNow()
		}
	}
}

// run makes a pod, or with a spec around it a Job, that runs the load program once.
func (l *life) run(name string, node int, args []string, change func(pod object)) {
	l.t.Helper()
	load := func(name string, args []string) object {
		return object{"name": name, "image": kubetest.LoadImage, "imagePullPolicy": "Never", "args": args}
	}
	pod := object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name}, "spec": object{
		"nodeName": l.Node(node).Name(), "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": []object{load("load", args)}}}
	if change != nil {
		change(pod)
	}
	data, err := json.Marshal(pod)
	if err != nil {
		l.t.Fatal(err)
	}
	l.Apply(string(data))
}

// condition is the pod's conduit.io/Enrolled, as "STATUS REASON GENERATION"; the generation is the pod's own if it is "=".
func (l *life) condition(pod string) string {
	l.t.Helper()
	var p struct {
		Metadata struct{ Generation int64 }
		Status   struct {
			Conditions []struct {
				Type, Status, Reason, Message string
				ObservedGeneration            int64
			}
		}
	}
	if err := json.Unmarshal([]byte(l.Kubectl("get", "pod", pod, "-o", "json")), &p); err != nil {
		l.t.Fatal(err)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "conduit.io/Enrolled" {
			generation := "="
			if c.ObservedGeneration != p.Metadata.Generation || c.ObservedGeneration == 0 {
				generation = fmt.Sprintf("%d of %d", c.ObservedGeneration, p.Metadata.Generation)
			}
			return fmt.Sprintf("%s %s %s", c.Status, c.Reason, generation)
		}
	}
	return "none"
}

func (l *life) await(pod, condition string) {
	l.t.Helper()
	l.Eventually(pod+" is "+condition, func() error {
		if got := l.condition(pod); got != condition {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
}

// event waits for an Event of a pod.
func (l *life) event(pod, reason string) {
	l.t.Helper()
	l.Eventually("Event "+reason+" of "+pod, func() error {
		said := l.Kubectl("get", "events", "--field-selector", "involvedObject.name="+pod+",reason="+reason+",type=Warning", "-o", "jsonpath={.items[*].message}")
		if said == "" {
			return fmt.Errorf("there is none")
		}
		l.t.Logf("%s: %s", pod, said)
		return nil
	})
}

func (l *life) ranBefore() {
	was := l.identities()
	conduit(l.t, l.Cluster, "mesh", "ns/"+l.Namespace, "--apply", "--wait")
	for _, pod := range []string{"client", "server", "keeper"} {
		l.await(pod, "True Enrolled =")
	}
	// Only what is enrolled is taken in from now on.
	l.Kubectl("annotate", "namespace", l.Namespace, "conduit.io/mtls-mode=STRICT")
	before := l.nodes.metric(2, "response_total", `direction="inbound"`, `tls="mtls"`)
	if err := l.Load("client", l.PodIP("server")+":9000", "--requests", "200", "--churn", "50"); err != nil {
		l.t.Errorf("enrolled where they are: %v", err)
	}
	if n := l.nodes.metric(2, "response_total", `direction="inbound"`, `tls="mtls"`) - before; n < 200 {
		l.t.Errorf("the server's proxy has seen %v responses with mTLS, want 200 and more", n)
	}
	if is := l.identities(); is != was {
		l.t.Errorf("pods were %s and are %s: they were made anew, or restarted", was, is)
	}
	conduit(l.t, l.Cluster, "check")
}

// identities are the pods' UIDs and restarts.
func (l *life) identities() string {
	l.t.Helper()
	return l.Kubectl("get", "pod", "client", "server", "keeper", "-o",
		`jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount} {end}`)
}

// bypassed takes the rule away that turns the client's packets round: connections go past the proxy until the agent looks.
func (l *life) bypassed() {
	netns := l.netns(1, "client")
	target := l.PodIP("server") + ":9000"
	l.Eventually("a connection goes past the proxy", func() error {
		l.Run(1, "nsenter", "--net="+netns, "sh", "-c", "for f in -4 -6; do for p in 100 101; do ip $f rule del pref $p 2>/dev/null; done; done; true")
		// In the clear: the server, which is STRICT, refuses it.
		_ = l.Load("client", target, "--requests", "1", "--timeout", "1s")
		if n := l.nodes.metric(1, "conduit_sockets_bypassed_total", `reason="unrouted"`); n == 0 {
			return fmt.Errorf("none is counted")
		}
		return nil
	})
	l.await("client", "False Bypassed =")
	l.event("client", "Bypassed")
	l.Eventually("the rules are back", func() error {
		if rules := l.Run(1, "nsenter", "--net="+netns, "ip", "rule"); !strings.Contains(rules, "fwmark 0x4d1 lookup 100") {
			return fmt.Errorf("%s", rules)
		}
		return nil
	})
	if err := l.Load("client", target, "--requests", "20", "--churn", "50"); err != nil {
		l.t.Errorf("after the repair: %v", err)
	}
}

// recovered is the end of bypassed: it is remembered for a minute, so that people see it.
func (l *life) recovered() {
	l.await("client", "True Enrolled =")
	conduit(l.t, l.Cluster, "check")
	l.Eventually("the connection of before has ended in order", func() error {
		if phase := l.Kubectl("get", "pod", "keeper", "-o", "jsonpath={.status.phase}"); phase != "Succeeded" {
			return fmt.Errorf("it is %s: %s", phase, l.Kubectl("logs", "keeper"))
		}
		return nil
	})
}

// netns is the path of a pod's network namespace on its node.
func (l *life) netns(node int, pod string) string {
	l.t.Helper()
	for _, p := range l.known(node) {
		if p.Namespace == l.Namespace && p.Name == pod {
			return p.Netns
		}
	}
	l.t.Fatalf("the agent of node %d does not know pod %s", node, pod)
	return ""
}

// known is what an agent says of a pod.
type known struct {
	Namespace, Name, Netns string
	Addrs                  []string
	Enrolled               bool
}

func (l *life) known(node int) []known {
	l.t.Helper()
	pods, err := l.tryKnown(node)
	if err != nil {
		l.t.Fatal(err)
	}
	return pods
}

func (l *life) tryKnown(node int) (pods []known, err error) {
	said, err := l.Node(node).Run(l.Context(), "curl", "-sSf", "http://127.0.0.1:4191/debug/pods")
	if err == nil {
		err = json.Unmarshal([]byte(said), &pods)
	}
	return pods, err
}

func (l *life) refused() {
	l.run("host", 1, []string{"backend", "--address", "127.0.0.1:9700"}, func(pod object) { pod["spec"].(object)["hostNetwork"] = true })
	l.run("out", 2, []string{"backend", "--address", "0.0.0.0:9000"}, func(pod object) {
		pod["metadata"].(object)["labels"] = object{"conduit.io/mesh": "disabled"}
	})
	l.WaitReady("host", "out")
	l.await("host", "False HostNetwork =")
	l.event("host", "HostNetwork")
	l.await("out", "False OptedOut =")
	if err := l.Load("out", l.PodIP("server")+":9000", "--requests", "1", "--timeout", "2s"); err == nil {
		l.t.Error("a pod that has opted out reaches one that wants mTLS")
	}
	l.Kubectl("label", "pod", "out", "conduit.io/mesh-")
	l.await("out", "True Enrolled =")
	if err := l.Load("out", l.PodIP("server")+":9000", "--requests", "1", "--timeout", "2s"); err != nil {
		l.t.Errorf("a pod that has changed its mind: %v", err)
	}
	l.Kubectl("delete", "pod", "host", "out", "--wait", "--timeout=60s")
}

// jobs are made all at once, as by a CronJob: each speaks to a STRICT server from its init container, and from its container, and ends.
func (l *life) jobs() {
	ask := []string{"run", "--target", l.PodIP("server") + ":9000", "--protocol", "http1", "--requests", "20", "--timeout", "5s"}
	const burst = 8
	l.run("burst", 1, ask, func(pod object) {
		spec := pod["spec"].(object)
		delete(spec, "nodeName")
		spec["initContainers"] = []object{{"name": "first", "image": kubetest.LoadImage, "imagePullPolicy": "Never", "args": ask}}
		for k := range pod {
			delete(pod, k)
		}
		pod["apiVersion"], pod["kind"], pod["metadata"] = "batch/v1", "Job", object{"name": "burst"}
		pod["spec"] = object{"completions": burst, "parallelism": burst, "backoffLimit": 0, "template": object{"spec": spec}}
	})
	l.Kubectl("wait", "--for=condition=Complete", "--timeout=120s", "job/burst")
	// Their Pods are still there; their addresses are others' soon.
	names := strings.Fields(l.Kubectl("get", "pods", "-l", "job-name=burst", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(names) != burst {
		l.t.Fatalf("pods %v, want %d that have ended at the first try", names, burst)
	}
	l.Eventually("nothing is left of pods that have ended", func() error {
		for node := 1; node <= l.Nodes(); node++ {
			for _, p := range l.known(node) {
				if p.Namespace == l.Namespace && strings.HasPrefix(p.Name, "burst-") {
					return fmt.Errorf("node %d knows %s", node, p.Name)
				}
			}
			if stored := l.Run(node, "sh", "-c", "grep -l burst- /run/conduit/pods/* || true"); stored != "" {
				return fmt.Errorf("node %d has stored %s", node, stored)
			}
			pods, lookups := len(l.meshed(node)), len(strings.Fields(l.Run(node, "sh", "-c", "ls /sys/fs/bpf/conduit/lookups")))
			if lookups != pods {
				return fmt.Errorf("node %d has programs in %d namespaces, and %d pods in the mesh", node, lookups, pods)
			}
		}
		return nil
	})
	l.Kubectl("delete", "job", "burst", "--wait", "--timeout=60s")
}

func (l *life) meshed(node int) (pods []known) {
	for _, p := range l.known(node) {
		if p.Namespace == l.Namespace {
			pods = append(pods, p)
		}
	}
	return pods
}

// failsClosed takes the agent of a node away: the plugin, which is in the node's configuration, lets no pod start without it. Nobody
// taints the node: what starts there waits, and goes on.
func (l *life) failsClosed() {
	l.Kubectl("-n", "conduit", "delete", "daemonset", "conduit-agent", "--cascade=orphan")
	l.Kubectl("-n", "conduit", "delete", "pod", "-l", "app.kubernetes.io/component=agent", "--field-selector", "spec.nodeName="+l.Node(2).Name(), "--wait", "--timeout=60s")
	l.Apply(kubetest.LoadPod("late", 2, nil))
	l.event("late", "FailedCreatePodSandBox")
	if phase := l.Kubectl("get", "pod", "late", "-o", "jsonpath={.status.phase}"); phase != "Pending" {
		l.t.Errorf("a pod that nobody has wired is %s", phase)
	}
	if said := l.Kubectl("get", "node", l.Node(2).Name(), "-o", "jsonpath={.spec.taints}"); said != "" {
		l.t.Errorf("the node is tainted %s", said)
	}
	if said := conduit(l.t, l.Cluster, "check", "--fix", "--timeout", "2m"); !strings.Contains(said, "fixed: DaemonSet conduit-agent created") {
		l.t.Error("check --fix does not say what it has mended")
	}
	l.WaitReady("late")
	l.await("late", "True Enrolled =")
	if err := l.Load("late", l.PodIP("client")+":9000", "--requests", "20"); err != nil {
		l.t.Errorf("a pod that had to wait: %v", err)
	}
}

// reboot takes from a node what a start of the machine takes: processes, network namespaces, kernel programs, and everything below /run.
// What is left is what was on its disk, the plugin's entry among it: pods wait for the agent, and are in the mesh again.
func (l *life) reboot() {
	node := l.Node(2)
	was := l.PodIP("server")
	ok := func(err error) {
		l.t.Helper()
		if err != nil {
			l.t.Fatal(err)
		}
	}
	ok(node.StopDaemon("kubelet"))
	l.Run(2, "sh", "-c", "ctr -n k8s.io tasks ls -q | xargs -r -n1 ctr -n k8s.io tasks kill -s SIGKILL")
	ok(node.StopDaemon("containerd"))
	l.Run(2, "sh", "-c", "for n in /run/netns/*; do umount $n; rm $n; done; rm -r /run/conduit /sys/fs/bpf/conduit")
	ok(node.StartDaemon(machine.Daemon{Name: "containerd"}))
	ok(node.StartDaemon(machine.Daemon{Name: "kubelet"}))
	l.Eventually("the server has a new network, and is in the mesh", func() error {
		pods, err := l.tryKnown(2)
		for _, p := range pods {
			if p.Name == "server" && p.Enrolled && !slices.Contains(p.Addrs, was) {
				return nil
			}
		}
		return fmt.Errorf("not yet: %+v, %v", pods, err)
	})
	l.Eventually("the server answers again", func() error {
		return l.Load("client", l.PodIP("server")+":9000", "--requests", "20", "--timeout", "2s")
	})
	l.await("server", "True Enrolled =")
	l.Eventually("check is green", func() error { // the kubelet probes the agent's containers every few seconds only
		said, err := tryConduit(l.Cluster, "check")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, said)
		}
		return nil
	})
}
