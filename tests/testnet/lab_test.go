package testnet_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(abandonEnv); name != "" {
		os.Exit(abandon(name))
	}
	os.Exit(testnet.Main(m))
}

// TestPodsReachEachOther wires pods on two nodes without the mesh, in every combination of primary plugin and
// families, and sends a marker both across the switch and within a node.
func TestPodsReachEachOther(t *testing.T) {
	for _, primary := range []string{lab.Bridge, lab.PTP} {
		for name, families := range map[string]lab.Families{"v4": lab.IPv4, "v6": lab.IPv6, "dual": lab.DualStack} {
			t.Run(primary+"/"+name, func(t *testing.T) {
				t.Parallel()
				testReach(t, lab.NodeConfig{Primary: primary, Families: families})
			})
		}
	}
}

func testReach(t *testing.T, cfg lab.NodeConfig) {
	n := testnet.New(t, testnet.Config{})
	one, two := n.Node("one", cfg), n.Node("two", cfg)
	client := n.Pod(one, "shop", "client", lab.PodOptions{})
	near := n.Pod(one, "shop", "near", lab.PodOptions{})
	far := n.Pod(two, "shop", "far", lab.PodOptions{})
	want := 1
	if cfg.Families == lab.DualStack {
		want = 2
	}
	capture, err := n.Switch().Capture()
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*lab.Pod{near, far} {
		if len(server.IPs) != want {
			t.Fatalf("pod %s has addresses %v, want %d", server, server.IPs, want)
		}
		port := testnet.Echo(t, server, 0)
		for _, ip := range server.IPs {
			marker := []byte(fmt.Sprintf("marker for %s", ip))
			got, err := testnet.RoundTrip(t.Context(), client, netip.AddrPortFrom(ip, port), marker)
			if err != nil || !bytes.Equal(got, marker) {
				t.Errorf("from %s to %s: got %q, %v; want %q", client, ip, got, err, marker)
			}
		}
		if err := server.Check(t.Context()); err != nil {
			t.Errorf("CHECK %s: %v", server, err)
		}
	}
	if err := capture.Stop(); err != nil {
		t.Error(err)
	}
	// The switch sees what crosses nodes, in both directions, and nothing of what stays on one.
	for _, ip := range far.IPs {
		if flows := capture.Find([]byte(fmt.Sprintf("marker for %s", ip))); len(flows) != 2 {
			t.Errorf("marker to another node is on the wire in %v, want 2 flows", flows)
		}
	}
	for _, ip := range near.IPs {
		if flows := capture.Find([]byte(fmt.Sprintf("marker for %s", ip))); len(flows) != 0 {
			t.Errorf("marker within the node is on the wire in %v", flows)
		}
	}
}

// TestCloseRemovesEverything looks for what is left by itself, rather than trusting Close's own verification.
func TestCloseRemovesEverything(t *testing.T) {
	n := testnet.New(t, testnet.Config{})
	node := n.Node("one", lab.NodeConfig{})
	pod := n.Pod(node, "shop", "web", lab.PodOptions{})
	sleeper := pod.Command(context.Background(), "sleep", "600")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sleeper.Wait() }()
	if pids, err := pod.Processes(); err != nil || len(pids) != 1 || pids[0] != sleeper.Process.Pid {
		t.Fatalf("processes in the pod: %v, %v; want %d", pids, err, sleeper.Process.Pid)
	}
	if got := namespaces(t, n.Name()); len(got) != 3 {
		t.Fatalf("namespaces %v, want switch, node and pod", got)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the process in the pod is still there")
	}
	if got := namespaces(t, n.Name()); len(got) != 0 {
		t.Errorf("namespaces left: %v", got)
	}
	if _, err := os.Stat(n.Dir()); !os.IsNotExist(err) {
		t.Errorf("directory %s is left: %v", n.Dir(), err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func namespaces(t *testing.T, prefix string) []string {
	t.Helper()
	found, err := filepath.Glob("/run/netns/" + prefix + ".*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestFailedAddLeavesNothing makes ADD fail in the last plugin of the chain: the primary plugin's work is undone.
func TestFailedAddLeavesNothing(t *testing.T) {
	n := testnet.New(t, testnet.Config{})
	node := n.Node("one", lab.NodeConfig{Mesh: true}) // and no such plugin in the path
	_, err := node.AddPod(t.Context(), "shop", "web", lab.PodOptions{})
	if err == nil || !strings.Contains(err.Error(), "conduit-cni") {
		t.Fatalf("AddPod: %v, want an error about conduit-cni", err)
	}
	if got := namespaces(t, n.Name()+".pod"); len(got) != 0 {
		t.Errorf("namespaces left: %v", got)
	}
	if got, _ := os.ReadDir(node.ManifestDir()); len(got) != 0 {
		t.Errorf("manifests left: %v", got)
	}
	if pods := n.Pods(); len(pods) != 0 {
		t.Errorf("pods left: %v", pods)
	}
}

func TestNewRefuses(t *testing.T) {
	n := testnet.New(t, testnet.Config{})
	for name, cfg := range map[string]lab.Config{
		"bad name":      {Name: "Upper"},
		"name in use":   {Name: n.Name(), Dir: filepath.Join(t.TempDir(), "x")},
		"dir not empty": {Name: n.Name() + "x", Dir: mustWrite(t)},
	} {
		if l, err := lab.New(cfg); err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if got := namespaces(t, n.Name()); len(got) != 1 {
		t.Errorf("namespaces %v: a refused lab touched another's", got)
	}
}

func mustWrite(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
