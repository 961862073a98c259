package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// proxyLost takes the proxy of node 1 away, under load and where plaintext is refused: until the next one is there the node's pods open no
// connection. That is said by everybody who is asked, nothing goes past the mesh, and afterwards no request fails.
func (w *world) proxyLost() {
	w.spared = true
	w.strict(true)
	w.load.goOn("STRICT")
	wire := w.listen(1)
	w.proxyKilled()
	w.agentDeleted()
	for _, line := range wire() {
		w.t.Errorf("on the wire: %s", line)
	}
	w.well()
	before, had := w.load.failures()
	w.load.goOn("through other proxies")
	if after, has := w.load.failures(); after != before {
		w.t.Errorf("when all was well again %d failed:\n%s", after-before, strings.Join(newOf(had, has), "\n"))
	}
	w.strict(false)
}

// proxyKilled kills it hard: it takes its connections with it, and the kubelet starts the next one.
func (w *world) proxyKilled() {
	served := w.first().Agent.Proxy.Starts
	began := time.Now()
	w.signal(1, "proxy", "kill", "-s", "SIGKILL")
	w.again("another proxy serves node 1", func(n *listed) bool { return n.Agent.Proxy.Starts == served+1 })
	w.t.Logf("killed: another proxy serves after %v", time.Since(began).Round(10*time.Millisecond))
	w.asked("right after it was killed")

	// Killed once more, the kubelet lets 10 s pass: time to ask.
	w.signal(1, "proxy", "kill", "-s", "SIGKILL")
	w.without(notReady, "ProxyNotReady")
	w.says("ProxyNotReady: ")
	if err := w.objects(); err != nil { // the kernel goes on steering the pods: connections are refused
		w.t.Errorf("without a proxy: %v", err)
	}
	w.again("a third proxy serves node 1", func(n *listed) bool { return n.Agent.Proxy.Starts == served+2 })
	w.asked("right after it was killed again")
	w.meshed.Eventually("there is an Event", func() error {
		said, err := w.meshed.Try("-n", "conduit", "get", "events", "--field-selector", "reason=ProxyNotReady,type=Warning", "-o", "jsonpath={.items[*].message}")
		if err == nil && said == "" {
			err = fmt.Errorf("there is none")
		}
		return err
	})
}

// agentDeleted deletes the agent's pod, and with it the proxy. Another pod is made at once, for there may be two in a rollout, and takes over
// while the proxy before still accepts, if it starts within 5 s.
func (w *world) agentDeleted() {
	was, began := w.first().Agent.Instance, time.Now()
	before, _ := w.load.failures()
	pod := w.meshed.Kubectl("-n", "conduit", "get", "pods", "-l", "app.kubernetes.io/component=agent", "--field-selector", "spec.nodeName="+w.meshed.Node(1).Name(), "-o", "jsonpath={.items[0].metadata.name}")
	w.meshed.Kubectl("-n", "conduit", "delete", "pod", pod, "--wait=false")
	w.again("another agent and its proxy serve node 1", func(n *listed) bool { return n.Agent.Instance != was })
	w.t.Logf("deleted: another agent and its proxy serve after %v", time.Since(began).Round(10*time.Millisecond))
	w.asked("right after the agent's pod was made anew")
	after, _ := w.load.failures()
	w.t.Logf("deleted: %d failed meanwhile", after-before)
}

// without waits until every replica lists node 1 in the state, for the reason, and the others as ready.
func (w *world) without(state, reason string) {
	w.view.everywhere("node 1 is "+state, func(nodes []listed, err error) error {
		for i := range nodes {
			n, want := &nodes[i], ready
			if n.Name == w.meshed.Node(1).Name() {
				if want = state; n.Agent.Reason != reason || state == notReady && n.Agent.Proxy.Up {
					return fmt.Errorf("node 1: %+v", n)
				}
			}
			if err := n.is(want); err != nil {
				return err
			}
		}
		return err
	})
}

// says waits until conduit check fails, and says so of node 1.
func (w *world) says(why string) {
	w.meshed.Eventually("conduit check says "+why, func() error {
		said, err := tryConduit(w.meshed, "check", "--timeout", "10s")
		if err == nil || !strings.Contains(said, w.meshed.Node(1).Name()+": "+why) {
			return fmt.Errorf("%w\n%s", err, said)
		}
		return nil
	})
}

// first is node 1 as it is listed.
func (w *world) first() (first listed) {
	w.view.everywhere("node 1", func(nodes []listed, err error) error {
		for _, n := range nodes {
			if n.Name == w.meshed.Node(1).Name() {
				first = n
			}
		}
		return err
	})
	return first
}

// again waits until node 1 is ready again, and as it should be.
func (w *world) again(what string, good func(*listed) bool) {
	w.view.everywhere(what, func(nodes []listed, err error) error {
		for i := range nodes {
			if n := &nodes[i]; n.Name == w.meshed.Node(1).Name() {
				if !good(n) {
					return fmt.Errorf("%+v", n)
				}
				return n.is(ready)
			}
		}
		return err
	})
}

// asked sends requests of its own, of which none may fail, from a server on node 1.
func (w *world) asked(when string) {
	pod := strings.Fields(w.meshed.Kubectl("get", "pods", "-l", "app=web", "--field-selector", "spec.nodeName="+w.meshed.Node(1).Name(), "-o", "jsonpath={.items[*].metadata.name}"))[0]
	ip := w.meshed.Kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	if err := w.meshed.Load(pod, fmt.Sprintf("%s:%d", ip, portDetected), "--requests", "300", "--churn", "50"); err != nil {
		w.t.Errorf("%s: %v", when, err)
	}
}

// said is a packet of tcpdump's that carries data, or asks for a connection.
var said = regexp.MustCompile(`IP ([0-9.]+)\.([0-9]+) > ([0-9.]+)\.([0-9]+): Flags \[([A-Z.]+)\].* length ([0-9]+)`)

// listen records what leaves a node, and what comes in. The function that it returns ends that, and returns what pods of the mesh have
// said in it past the mesh's port, or asked for there.
func (w *world) listen(node int) (stop func() []string) {
	pods := map[netip.Addr]bool{}
	for _, ip := range strings.Fields(w.meshed.Kubectl("get", "pods", "-o", "jsonpath={.items[*].status.podIP}")) {
		pods[netip.MustParseAddr(ip)] = true
	}
	var out bytes.Buffer
	cmd := w.meshed.Node(node).Command(w.t.Context(), "tcpdump", "-l", "-i", "eth0", "-nn", "tcp", "and", "net", "10.244.0.0/16", "and", "not", "port", "15008")
	cmd.Stdout = &out
	ready, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = ready.Read(make([]byte, 1)) // it says that it listens
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return func() (past []string) {
		// To the whole group: it is nsenter's child.
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil {
			w.t.Fatal(err)
		}
		_ = cmd.Wait() // it was ended
		for _, p := range said.FindAllStringSubmatch(out.String(), -1) {
			from, to := netip.MustParseAddr(p[1]), netip.MustParseAddr(p[3])
			if pods[from] && pods[to] && (p[6] != "0" || strings.Contains(p[5], "S") && !strings.Contains(p[5], ".")) {
				past = append(past, p[0])
			}
		}
		return past
	}
}
