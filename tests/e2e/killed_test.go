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

// proxyKilled kills the proxy of node 1 hard, under load and where plaintext is refused. It takes its connections with it, and until
// the kubelet has started the next one its pods open none. That is said by everybody who is asked, and nothing goes past the mesh.
func (w *world) proxyKilled() {
	w.spared = true
	w.strict(true)
	w.load.goOn("STRICT")
	wire := w.listen(1)
	served := w.served(1)
	began := time.Now()
	w.signal(1, "proxy", "kill", "-s", "SIGKILL")
	w.servedBy(1, served+1)
	w.t.Logf("another proxy serves after %v", time.Since(began).Round(10*time.Millisecond))
	w.asked("right after the first")

	// Killed once more, the kubelet lets 10 s pass: time to ask.
	w.signal(1, "proxy", "kill", "-s", "SIGKILL")
	w.view.everywhere("the proxy of node 1 is lost", func(nodes []listed, err error) error {
		for _, n := range nodes {
			switch {
			case n.Name != w.meshed.Node(1).Name():
				err = n.is(ready)
			case n.Agent.Reason != "ProxyNotReady" || n.Agent.Proxy.Up:
				err = fmt.Errorf("node 1: %+v", n)
			default:
				err = n.is(notReady)
			}
			if err != nil {
				return err
			}
		}
		return err
	})
	w.meshed.Eventually("conduit check tells of it", func() error {
		said, err := tryConduit(w.meshed, "check", "--timeout", "10s")
		if err == nil || !strings.Contains(said, w.meshed.Node(1).Name()+": ProxyNotReady: ") {
			return fmt.Errorf("%w\n%s", err, said)
		}
		return nil
	})
	if err := w.objects(); err != nil { // the kernel goes on steering the pods: connections are refused
		w.t.Errorf("without a proxy: %v", err)
	}
	w.servedBy(1, served+2)
	w.asked("right after the second")
	w.meshed.Eventually("there is an Event", func() error {
		said, err := w.meshed.Try("-n", "conduit", "get", "events", "--field-selector", "reason=ProxyNotReady,type=Warning", "-o", "jsonpath={.items[*].message}")
		if err == nil && said == "" {
			err = fmt.Errorf("there is none")
		}
		return err
	})
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

// served is how many proxies the agent of the node has known.
func (w *world) served(node int) (n int) {
	w.view.everywhere("proxies are counted", func(nodes []listed, err error) error {
		for i := range nodes {
			if nodes[i].Name == w.meshed.Node(node).Name() {
				n = nodes[i].Agent.Proxy.Starts
			}
		}
		return err
	})
	return n
}

// servedBy waits until the node's agent says that the nth proxy serves.
func (w *world) servedBy(node, nth int) {
	w.view.everywhere(fmt.Sprintf("proxy %d of node %d serves", nth, node), func(nodes []listed, err error) error {
		for i := range nodes {
			if n := &nodes[i]; n.Name == w.meshed.Node(node).Name() {
				if n.Agent.Proxy.Starts != nth {
					return fmt.Errorf("it is number %d", n.Agent.Proxy.Starts)
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
	cmd := w.meshed.Node(node).Command(w.meshed.Context(), "tcpdump", "-l", "-i", "eth0", "-nn", "tcp", "and", "net", "10.244.0.0/16", "and", "not", "port", "15008")
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
