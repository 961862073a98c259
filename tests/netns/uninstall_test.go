package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// TestUninstallStates removes everything of a node on which agent and proxy run, on which one of them is dead, and on which
// both are; each time twice. Its pods go on, directly.
func TestUninstallStates(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	if err := n.WriteNamespace("plain", nil, nil); err != nil {
		t.Fatal(err)
	}
	node := n.Node("one", lab.NodeConfig{Mesh: true})
	for i, state := range []struct {
		name string
		make func(t *testing.T)
	}{
		{"both run", func(*testing.T) {}},
		{"agent dead", func(t *testing.T) { killAgent(t, node) }},
		{"both dead", func(t *testing.T) { killAgent(t, node); killProxy(t, node) }},
	} {
		t.Run(state.name, func(t *testing.T) { uninstallFrom(t, n, node, fmt.Sprintf("shop%d", i), state.make) })
	}
}

func killAgent(t *testing.T, node *lab.Node) {
	t.Helper()
	if err := node.KillAgent(); err != nil {
		t.Fatal(err)
	}
}

func uninstallFrom(t *testing.T, n *testnet.Net, node *lab.Node, namespace string, state func(*testing.T)) {
	if err := n.WriteNamespace(namespace, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := node.StartAgent(t.Context(), lab.AgentConfig{}); err != nil {
		t.Fatal(err)
	}
	client, server := n.Pod(node, namespace, "client", lab.PodOptions{}), n.Pod(node, namespace, "server", lab.PodOptions{})
	witness(t, server, regionWitness, false, "tcp")
	p := pair{client, server}
	direct := p.hold(t) // before the pods are enrolled
	n.EnrolledNamespace(namespace)
	testnet.Eventually(t, 15*time.Second, func(context.Context) error {
		if got := enrolled(t, node); len(got) != 2 {
			return fmt.Errorf("enrolled: %v, want both pods", got)
		}
		return nil
	})
	through := p.hold(t)
	if got := steered(t, node, client); got != 1 {
		t.Fatalf("%v connections steered, want 1", got)
	}
	n.NoteBPF()
	noted := n.Noted()
	if noted < 10 {
		t.Fatalf("only %d BPF objects are pinned in %s", noted, node.PinDir())
	}
	state(t)

	out, err := uninstallOnce(t, node)
	if err != nil || !strings.Contains(out, "removed  kernel programs, links, maps and pins below "+node.PinDir()) {
		t.Fatalf("uninstall: %v\n%s", err, out)
	}
	wantGone(t, n, node, client, server)
	wantEnded(t, "connection through the proxy", through)
	if err := p.askOn(direct, "direct-before"); err != nil {
		t.Errorf("connection that was made before the mesh: %v", err)
	}
	for _, f := range []lab.Families{lab.IPv4, lab.IPv6} {
		if err := p.ask(t.Context(), f, "direct-after"); err != nil {
			t.Errorf("new connection: %v", err)
		}
	}
	if out, err := uninstallOnce(t, node); err != nil || !strings.Contains(out, "nothing  neither "+node.RunDir()+" nor "+node.PinDir()+" is there") {
		t.Errorf("uninstall again: %v\n%s", err, out)
	}
	wantGone(t, n, node, client, server)
	if err := p.askOn(direct, "direct-still"); err != nil {
		t.Errorf("connection that was made before the mesh: %v", err)
	}
}

// uninstallOnce runs the command that a user runs.
func uninstallOnce(t *testing.T, node *lab.Node) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := node.Command(ctx, agentBinary(node), "--uninstall", "--run-dir", node.RunDir(), "--bpffs", node.PinDir()).CombinedOutput()
	return string(out), err
}

// agentBinary is the agent beside the plugin that the node's chain uses.
func agentBinary(node *lab.Node) string {
	path := node.PluginPath()
	return filepath.Join(path[len(path)-1], "conduit-agent")
}

// wantGone expects nothing of agent and proxy in kernel, file system, process table and pods.
func wantGone(t *testing.T, n *testnet.Net, node *lab.Node, pods ...*lab.Pod) {
	t.Helper()
	if left := n.LeakedBPF(10 * time.Second); len(left) != 0 {
		t.Errorf("still in the kernel: %v", left)
	}
	testnet.Eventually(t, 5*time.Second, func(context.Context) error {
		if pids, err := node.Processes(); err != nil || len(pids) != 0 {
			return fmt.Errorf("processes on the node: %v, %w; want none", pids, err)
		}
		return nil
	})
	for _, dir := range []string{node.RunDir(), node.PinDir()} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			files, _ := os.ReadDir(dir)
			t.Errorf("%s is still there, with %v (%v)", dir, files, err)
		}
	}
	for _, p := range pods {
		wantUntouched(t, p.Netns)
	}
}

// footprint is what a node's agent and proxy hold; what comes with a pod must go with it.
type footprint struct {
	agentFDs, proxyFDs, pins int
	nets                     int      // network namespaces that the two keep alive
	records                  []string // of pods, in the run directory
	debug                    []string // pods that the agent knows
}

func footprintOf(t *testing.T, node *lab.Node) (f footprint) {
	t.Helper()
	fds := func(pid int) int {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		all, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range all {
			var fs unix.Statfs_t
			if unix.Statfs(filepath.Join(dir, fd.Name()), &fs) == nil && fs.Type == unix.NSFS_MAGIC {
				f.nets++
			}
		}
		return len(all)
	}
	pods, err := testnet.AgentPods(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	for name := range pods {
		f.debug = append(f.debug, name)
	}
	slices.Sort(f.debug)
	records, err := os.ReadDir(filepath.Join(node.RunDir(), "pods"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		f.records = append(f.records, r.Name())
	}
	f.agentFDs, f.proxyFDs, f.pins = fds(node.AgentPID()), fds(proxyPID(t, node)), len(pins(t, node))
	return f
}

// steadyFootprint is the footprint of a node whose agent has ended what it does ahead of the next pod: copies of the lookup program are made
// ten times in a second.
func steadyFootprint(t *testing.T, node *lab.Node) (f footprint) {
	t.Helper()
	most, looks := 0, 0
	testnet.Eventually(t, 30*time.Second, func(context.Context) error {
		f = footprintOf(t, node)
		if looks++; f.agentFDs > most {
			most, looks = f.agentFDs, 0
		}
		if looks < 25 { // of 20 ms and more
			return fmt.Errorf("%s opens files still: %d", node.Name(), most)
		}
		return nil
	})
	return f
}

// wantFootprint waits until a node holds what it held before, and no more. Connections that tests have closed may
// take a moment to go.
func wantFootprint(t *testing.T, node *lab.Node, before footprint) {
	t.Helper()
	testnet.Eventually(t, 15*time.Second, func(context.Context) error {
		now := footprintOf(t, node)
		if now.agentFDs > before.agentFDs+1 || now.proxyFDs > before.proxyFDs || now.pins != before.pins || now.nets > before.nets || // the agent serves this very request
			!slices.Equal(now.records, before.records) || !slices.Equal(now.debug, before.debug) {
			return fmt.Errorf("%s holds %+v, want %+v", node.Name(), now, before)
		}
		return nil
	})
}

// TestPodDeletedUnderLoad: DEL of a pod that talks leaves nothing of it, and its neighbours do not notice.
func TestPodDeletedUnderLoad(t *testing.T) {
	r := newRegion(t)
	b := newBustle(t, []pair{{r.openA, r.openB}, {r.shutA, r.shutB}, {r.openA, r.shutA}})
	g, one, _ := r.lab()
	before := steadyFootprint(t, one)
	before.proxyFDs += 20 // the load's own connections come and go
	victim := g.Pod(one, "open", "victim", lab.PodOptions{})
	serveRegion(t, victim)
	out, in := pair{victim, r.shutB}, pair{r.openB, victim}
	in.await(t)
	out.await(t)
	held, heldIn := out.hold(t), in.hold(t)
	noise := make(chan struct{})
	done := make(chan []attempt)
	go func() { done <- in.attempts(t.Context(), noise, lab.IPv4, "to-the-victim") }()
	b.progress(2)
	if err := victim.Delete(t.Context()); err != nil {
		t.Errorf("DEL: %v", err)
	}
	for _, c := range []net.Conn{held, heldIn} {
		wantEnded(t, "connection of the deleted pod", c)
	}
	close(noise)
	for _, a := range <-done {
		if a.took > 8*time.Second {
			t.Errorf("connection to the deleted pod hung for %v: %v", a.took, a.err)
		}
	}
	wantFootprint(t, one, before)
	b.progress(2)
	b.stop()
	for _, name := range []string{"conduit_sockets_created_total", "conduit_sockets_steered_total", "conduit_sockets_bypassed_total"} {
		if got := metric(t, r.one, name, `pod="open/victim`); got != 0 {
			t.Errorf("%s of deleted pods is %v, want no such series", name, got)
		}
	}
}
