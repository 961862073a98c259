// Package netns_test runs the CNI chain with the real agent, proxy and programs, on nodes and pods that are network
// namespaces.
package netns_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/cluster/inpod"
	"conduit.io/conduit/tests/testnet"
)

func TestMain(m *testing.M) {
	if os.Getenv(proberEnv) != "" {
		os.Exit(beProber())
	}
	inpod.Main()
	if os.Getenv(groundEnv) == "cluster" {
		os.Exit(mainOnCluster(m))
	}
	os.Exit(testnet.Main(m))
}

// wantCode checks that err is a CNI error with the code, and that it mentions every part.
func wantCode(t *testing.T, what string, err error, code uint, parts ...string) {
	t.Helper()
	var cerr *types.Error
	if !errors.As(err, &cerr) || cerr.Code != code {
		t.Errorf("%s: %v; want CNI error %d", what, err, code)
		return
	}
	for _, part := range parts {
		if !strings.Contains(cerr.Error(), part) {
			t.Errorf("%s: error %q does not mention %q", what, cerr, part)
		}
	}
}

// inside is a network namespace, or a pod.
type inside interface{ InNetns(func() error) error }

// rules lists the mesh's routing rules in a pod, by family.
func rules(t *testing.T, ns inside) (v4, v6 []netlink.Rule) {
	t.Helper()
	err := ns.InNetns(func() error {
		for family, out := range map[int]*[]netlink.Rule{netlink.FAMILY_V4: &v4, netlink.FAMILY_V6: &v6} {
			all, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			*out = slices.DeleteFunc(all, func(r netlink.Rule) bool { return r.Mark != steerMark })
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return v4, v6
}

// traces is how much of the mesh there is in a pod's namespace.
type traces struct {
	rules, routes, listeners int
}

func tracesIn(t *testing.T, ns inside) (found traces) {
	t.Helper()
	v4, v6 := rules(t, ns)
	found.rules = len(v4) + len(v6)
	err := ns.InNetns(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: steerTable}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			found.routes += len(routes)
		}
		for _, file := range []string{"tcp", "tcp6"} {
			sockets, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(sockets)) {
				f := strings.Fields(line) // number, local address, remote address, state, ...
				if len(f) > 3 && f[3] == "0A" && (strings.HasSuffix(f[1], ":3A99") || strings.HasSuffix(f[1], ":3A9E")) {
					found.listeners++ // of ports 15001 and 15006
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// wantUntouched expects no rule, no route and no listener of the mesh in a pod.
func wantUntouched(t *testing.T, ns inside) {
	t.Helper()
	if got := tracesIn(t, ns); got != (traces{}) {
		t.Errorf("in %v: %+v, want nothing of the mesh", ns, got)
	}
}

// steerTable is the routing table that turns marked packets round.
const steerTable = 100

// steerMark is the mark of steered connections (datapath: rules with fwmark 0x4d1).
const steerMark = 0x4d1

// TestChain wires pods behind each primary plugin and for each family: through libcni, with everything a runtime
// calls in a pod's life.
func TestChain(t *testing.T) {
	for _, primary := range []string{lab.Bridge, lab.PTP} {
		for name, families := range map[string]lab.Families{"v4": lab.IPv4, "v6": lab.IPv6, "dual": lab.DualStack} {
			t.Run(primary+"/"+name, func(t *testing.T) {
				t.Parallel()
				testChain(t, primary, families)
			})
		}
	}
}

func testChain(t *testing.T, primary string, families lab.Families) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	n.EnrolledNamespace("shop")
	node := n.MeshNode("one", lab.NodeConfig{Primary: primary, Families: families})
	if err := node.CNIStatus(t.Context()); err != nil {
		t.Fatalf("STATUS: %v", err)
	}
	client := n.Pod(node, "shop", "client", lab.PodOptions{})
	server := n.Pod(node, "shop", "server", lab.PodOptions{})
	for _, p := range []*lab.Pod{client, server} {
		if err := p.Check(t.Context()); err != nil {
			t.Errorf("CHECK of a wired pod: %v", err)
		}
		v4, v6 := rules(t, p.Netns)
		if len(v4) != 2 || len(v6) != 2 { // also of a family of which there is no address yet
			t.Errorf("rules in %s: %v and %v; want two of each family", p, v4, v6)
		}
		if p.Result.Interfaces[len(p.Result.Interfaces)-1].Sandbox != p.Path() || len(p.Result.Routes) == 0 {
			t.Errorf("result of %s lost something of the primary plugin's: %+v", p, p.Result)
		}
	}
	reach(t, client, server)
	for _, p := range []*lab.Pod{client, server} {
		if got := steered(t, node, p); (got > 0) != (p == client) {
			t.Errorf("%v sockets of %s steered, want those of the client", got, p)
		}
	}

	wantCode(t, "CHECK of a pod without its rules", checkBroken(t, server.Netns, server.Check), 100, "shop/server")
	for _, p := range []*lab.Pod{client, server} {
		if err := p.Delete(t.Context()); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	again := n.Pod(node, "shop", "server", lab.PodOptions{}) // the same name, another namespace
	if err := again.Check(t.Context()); err != nil {
		t.Errorf("CHECK of a pod that was replaced: %v", err)
	}
}

// reach sends a message to every address of the server and wants it back.
func reach(t *testing.T, client, server *lab.Pod) {
	t.Helper()
	port := testnet.Echo(t, server, 0)
	for _, ip := range server.IPs {
		message := []byte("to " + ip.String())
		got, err := testnet.RoundTrip(t.Context(), client, netip.AddrPortFrom(ip, port), message)
		if err != nil || !bytes.Equal(got, message) {
			t.Errorf("%s to %s at %s: got %q, %v; want %q", client, server, ip, got, err, message)
		}
	}
}

// checkBroken takes the rules away and checks, until a check fails: the agent may repair them in between.
func checkBroken(t *testing.T, ns *lab.Netns, check func(context.Context) error) error {
	t.Helper()
	for range 5 {
		breakRules(t, ns)
		if err := check(t.Context()); err != nil {
			return err
		}
	}
	return nil
}

func breakRules(t *testing.T, ns *lab.Netns) {
	t.Helper()
	v4, v6 := rules(t, ns)
	err := ns.InNetns(func() error {
		var errs []error
		for _, r := range append(v4, v6...) {
			errs = append(errs, netlink.RuleDel(&r))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestChainVersions runs the chain in the older versions of the specification that runtimes still use.
func TestChainVersions(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	n.EnrolledNamespace("shop")
	for i, version := range []string{"0.3.1", "0.4.0", "1.0.0"} {
		node := n.MeshNode("node"+strconv.Itoa(i), lab.NodeConfig{CNIVersion: version})
		web := n.Pod(node, "shop", "web"+strconv.Itoa(i), lab.PodOptions{})
		db := n.Pod(node, "shop", "db"+strconv.Itoa(i), lab.PodOptions{})
		if len(web.IPs) != 2 {
			t.Errorf("%s: addresses %v, want two", version, web.IPs)
		}
		if got := enrolled(t, node); len(got) != 2 {
			t.Errorf("%s: enrolled %v, want both pods", version, got)
		}
		reach(t, web, db)
		if err := web.Check(t.Context()); (err != nil) != (version == "0.3.1") { // which has no CHECK
			t.Errorf("%s: CHECK: %v", version, err)
		}
		if err := web.Delete(t.Context()); err != nil {
			t.Errorf("%s: DEL: %v", version, err)
		}
		if got := enrolled(t, node); len(got) != 1 {
			t.Errorf("%s: enrolled %v after DEL", version, got)
		}
	}
}

// TestNotEnrolled: a pod outside the mesh, on a node with an agent, is wired by the primary plugin and left alone.
func TestNotEnrolled(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	n.EnrolledNamespace("shop")
	if err := n.WriteNamespace("plain", nil, nil); err != nil {
		t.Fatal(err)
	}
	node := n.MeshNode("one", lab.NodeConfig{})
	out := n.Pod(node, "plain", "web", lab.PodOptions{})
	opted := n.Pod(node, "shop", "opted-out", lab.PodOptions{Labels: map[string]string{"conduit.io/mesh": "disabled"}})
	in := n.Pod(node, "shop", "web", lab.PodOptions{})
	if got, want := tracesIn(t, in.Netns), (traces{rules: 4, routes: 4, listeners: 4}); got != want {
		t.Errorf("in %s: %+v, want %+v", in, got, want)
	}
	for _, p := range []*lab.Pod{out, opted} {
		wantUntouched(t, p.Netns)
		if err := p.Check(t.Context()); err != nil {
			t.Errorf("CHECK of %s: %v", p, err)
		}
		reach(t, p, in) // the default mode is PERMISSIVE
		reach(t, in, p)
	}
}

// TestAgentStates: STATUS, ADD and DEL with an agent that is away, killed and back.
func TestAgentStates(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	n.EnrolledNamespace("shop")
	node := n.Node("one", lab.NodeConfig{Mesh: true})
	wantCode(t, "STATUS before the agent's first start", node.CNIStatus(t.Context()), 50, node.AgentSocket())
	_, err := node.AddPod(t.Context(), "shop", "early", lab.PodOptions{NoManifest: true})
	wantCode(t, "ADD before the agent's first start", err, 11, "is the agent running")

	if err := node.StartAgent(t.Context(), lab.AgentConfig{}); err != nil {
		t.Fatal(err)
	}
	web, db := n.Pod(node, "shop", "web", lab.PodOptions{}), n.Pod(node, "shop", "db", lab.PodOptions{})
	if err := node.KillAgent(); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "STATUS of a killed agent", node.CNIStatus(t.Context()), 50)
	reach(t, web, db) // the proxy does not die with it
	if err := db.Delete(t.Context()); err != nil {
		t.Errorf("DEL without an agent: %v", err)
	}
	if err := node.StartAgent(t.Context(), lab.AgentConfig{}); err != nil {
		t.Fatal(err)
	}
	if err := node.CNIStatus(t.Context()); err != nil {
		t.Errorf("STATUS of the new agent: %v", err)
	}
	if err := web.Check(t.Context()); err != nil {
		t.Errorf("CHECK of a pod that the agent before had wired: %v", err)
	}
	reach(t, n.Pod(node, "shop", "db", lab.PodOptions{}), web)
}

// TestUnknownPod: an agent that has no manifest of a pod refuses it, says so, and nothing is left of it.
func TestUnknownPod(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	node := n.MeshNode("one", lab.NodeConfig{})
	start := time.Now()
	_, err := node.AddPod(t.Context(), "nowhere", "nobody", lab.PodOptions{NoManifest: true})
	wantCode(t, "ADD of an unknown pod", err, 11, "nowhere/nobody")
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("refusal took %v", took)
	}
	if pods := n.Pods(); len(pods) != 0 {
		t.Errorf("pods: %v", pods)
	}
}

// TestGC: what the runtime does not list is unwired, whether its namespace is gone or not and although the runtime has
// lost its own record of it; the other pods keep their wiring.
func TestGC(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	n.EnrolledNamespace("shop")
	node := n.MeshNode("one", lab.NodeConfig{})
	keep, peer := n.Pod(node, "shop", "keep", lab.PodOptions{}), n.Pod(node, "shop", "peer", lab.PodOptions{})
	stale, gone := n.Pod(node, "shop", "stale", lab.PodOptions{}), n.Pod(node, "shop", "gone", lab.PodOptions{})
	if got := enrolled(t, node); len(got) != 4 {
		t.Fatalf("enrolled: %v, want 4 pods", got)
	}
	for _, err := range []error{stale.ForgetResult(), gone.ForgetResult(), gone.ForgetNetns()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := node.CNIGC(t.Context(), keep, peer); err != nil {
		t.Fatalf("GC: %v", err)
	}
	if got := enrolled(t, node); !slices.Equal(got, []string{"shop/keep", "shop/peer"}) {
		t.Errorf("enrolled after GC: %v", got)
	}
	wantUntouched(t, stale.Netns)
	for _, p := range []*lab.Pod{keep, peer} {
		if err := p.Check(t.Context()); err != nil {
			t.Errorf("CHECK of %s after GC: %v", p, err)
		}
	}
	reach(t, keep, peer)
}

// enrolled lists the pods that the node's kernel steers, sorted.
func enrolled(t *testing.T, node testnet.Node) []string {
	t.Helper()
	pods, err := testnet.AgentPods(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(pods, func(_ string, p testnet.AgentPod) bool { return !p.Enrolled })
	return slices.Sorted(maps.Keys(pods))
}

// TestRepair: what is broken in a running pod is repaired without anybody's help.
func TestRepair(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	n.EnrolledNamespace("shop")
	node := n.MeshNode("one", lab.NodeConfig{})
	pod := n.Pod(node, "shop", "web", lab.PodOptions{})
	wantCode(t, "CHECK of a pod without its rules", checkBroken(t, pod.Netns, pod.Check), 100)
	testnet.Eventually(t, 30*time.Second, pod.Check)
	if err := os.Remove(filepath.Join(node.PinDir(), "hooks", "cdt_connect4")); err != nil {
		t.Fatal(err)
	}
	if err := pod.Check(t.Context()); err == nil {
		t.Error("CHECK misses no program although connect4 is detached")
	}
	testnet.Eventually(t, 30*time.Second, pod.Check)
}

// TestUninstall: nothing of agent and proxy stays in the kernel or in a pod, and traffic goes on directly.
func TestUninstall(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	n.EnrolledNamespace("shop")
	node := n.MeshNode("one", lab.NodeConfig{})
	web, db := n.Pod(node, "shop", "web", lab.PodOptions{}), n.Pod(node, "shop", "db", lab.PodOptions{})
	n.NoteBPF()
	if n.Noted() == 0 {
		t.Fatalf("an agent runs, but nothing is pinned in %s", node.PinDir())
	}
	if err := node.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := n.LeakedBPF(10 * time.Second); len(left) != 0 {
		t.Errorf("still in the kernel: %v", left)
	}
	if pids, err := node.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("processes on the node: %v, %v; want none", pids, err)
	}
	wantUntouched(t, web.Netns)
	wantUntouched(t, db.Netns)
	reach(t, web, db)
}
