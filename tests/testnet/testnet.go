// Package testnet gives tests a lab (package lab) that is removed, and checked for leaks, when the test ends.
// A package that uses it hands its TestMain over:
//
//	func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }
package testnet

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
)

// Config says what a test needs.
type Config struct {
	Mesh bool // the Conduit binaries, for nodes with agents
	// InMemory has nodes keep what they keep in memory, as they do in /run; otherwise it is wherever temporary files are.
	InMemory bool
}

// inMemory is a directory in memory on every Linux.
const inMemory = "/dev/shm"

// Net is a lab that belongs to a test.
type Net struct {
	*lab.Lab
	t    testing.TB
	bins Binaries
	seen map[object]bool
}

// New makes an empty lab for t, or skips t without root. When t ends the lab is closed, and anything that it left in
// the kernel or on disk fails t. If t has failed, the nodes' logs are printed.
func New(t testing.TB, cfg Config) *Net {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root (network namespaces and BPF); run `sudo make test`")
	}
	bins := Build(t, cfg.Mesh)
	name, parent := namePrefix+randomHex(4), os.TempDir() // not t.TempDir: its paths are too long for Unix sockets
	if cfg.InMemory {
		parent = inMemory
	}
	l, err := lab.New(lab.Config{
		Name:       name,
		Dir:        filepath.Join(parent, name),
		PluginPath: []string{bins.CNI},
		BinDir:     bins.Conduit,
		Log:        slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &Net{Lab: l, t: t, bins: bins, seen: map[object]bool{}}
	t.Cleanup(n.cleanup)
	return n
}

// namePrefix begins the name of every test's lab.
const namePrefix = "ct"

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// Binaries says where the programs are that the lab uses.
func (n *Net) Binaries() Binaries { return n.bins }

func (n *Net) cleanup() {
	n.NoteBPF()
	if n.t.Failed() {
		n.logNodes()
	}
	if err := n.Close(); err != nil {
		n.t.Errorf("close lab: %v", err)
	}
	if left := n.LeakedBPF(10 * time.Second); len(left) > 0 {
		n.t.Errorf("BPF objects of the lab are still loaded: %v", left)
	}
}

// logNodes prints the end of every log in the nodes' directories.
func (n *Net) logNodes() {
	for _, node := range n.Nodes() {
		for _, file := range []string{node.AgentLog(), filepath.Join(node.RunDir(), "proxy.log")} {
			if b, err := os.ReadFile(file); err == nil {
				n.t.Logf("%s of %s ends:\n%s", filepath.Base(file), node.Name(), lastLines(string(b), 40))
			}
		}
	}
}

func lastLines(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// testWriter sends a logger's lines to the test's log.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Helper()
	w.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// Node adds a node, or fails the test.
func (n *Net) Node(name string, cfg lab.NodeConfig) *lab.Node {
	n.t.Helper()
	node, err := n.AddNode(name, cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	return node
}

// MeshNode adds a node whose chain has conduit-cni and whose agent is ready, or fails the test.
func (n *Net) MeshNode(name string, cfg lab.NodeConfig) *lab.Node {
	n.t.Helper()
	cfg.Mesh = true
	node := n.Node(name, cfg)
	if err := node.StartAgent(n.t.Context(), lab.AgentConfig{}); err != nil {
		n.t.Fatal(err)
	}
	return node
}

// EnrolledNamespace writes a Namespace that is part of the mesh, or fails the test.
func (n *Net) EnrolledNamespace(name string) {
	n.t.Helper()
	if err := n.WriteNamespace(name, map[string]string{"conduit.io/mesh": "enabled"}, nil); err != nil {
		n.t.Fatal(err)
	}
}

// Pod adds a pod, or fails the test.
func (n *Net) Pod(node *lab.Node, namespace, name string, opts lab.PodOptions) *lab.Pod {
	n.t.Helper()
	p, err := node.AddPod(n.t.Context(), namespace, name, opts)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// AgentPod is what an agent says of a pod; the kernel's part is read from the kernel.
type AgentPod struct {
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Identity  string          `json:"identity"`
	Netns     string          `json:"netns"`
	Enrolled  bool            `json:"enrolled"`
	Listeners map[string]bool `json:"listeners"`
	Error     string          `json:"error"`
}

// AgentPods asks a node's agent what pods it knows, by NAMESPACE/NAME.
func AgentPods(ctx context.Context, node Node) (map[string]AgentPod, error) {
	status, body, err := node.Get(ctx, "/debug/pods")
	if err != nil || status != 200 {
		return nil, fmt.Errorf("ask agent of %s for its pods: status %d: %w", node.Name(), status, err)
	}
	var list []AgentPod
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("read the pods of %s: %w", node.Name(), err)
	}
	pods := map[string]AgentPod{}
	for _, p := range list {
		pods[p.Namespace+"/"+p.Name] = p
	}
	return pods, nil
}

// Eventually polls ok until it returns nil, and fails the test with its last error after the timeout.
func Eventually(t testing.TB, timeout time.Duration, ok func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		if e := ok(ctx); e == nil {
			return
		} else if ctx.Err() == nil || err == nil {
			err = e // an attempt that the end of ctx cut short says less than the one before it
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %v", timeout, err)
		case <-tick.C:
		}
	}
}

// Metric sums the series of a metric on a node's admin endpoint whose label text contains all of the parts.
func Metric(ctx context.Context, node Asked, name string, parts ...string) (float64, error) {
	status, body, err := node.Get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	if status != 200 {
		return 0, fmt.Errorf("read metrics: status %d", status)
	}
	return sumSeries(string(body), name, parts)
}
