package netns_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// TestBadInput gives a node's plugin, agent and manifests what they must refuse. Each time the user must learn what is wrong,
// why, and what to do; nothing may be left of it; and a connection through the mesh goes on all the time.
func TestBadInput(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	n.EnrolledNamespace("shop")
	node := n.MeshNode("one", lab.NodeConfig{})
	client, server := n.Pod(node, "shop", "client", lab.PodOptions{}), n.Pod(node, "shop", "server", lab.PodOptions{
		Labels: map[string]string{"app": "server"}})
	witness(t, server, regionWitness, false, "tcp")
	p := pair{client, server}
	held := p.hold(t)
	before, agent, proxy := steadyFootprint(t, node), node.AgentPID(), proxyPID(t, node)
	unharmed := func(t *testing.T) {
		t.Helper()
		if err := errors.Join(p.askOn(held, "unharmed"), p.ask(t.Context(), lab.IPv4, "unharmed")); err != nil {
			t.Error(err)
		}
	}
	t.Run("plugin", func(t *testing.T) { badCalls(t, n, node, unharmed) })
	t.Run("manifests", func(t *testing.T) { badManifests(t, n, p, unharmed) })
	t.Run("agent", func(t *testing.T) { badAgents(t, n, node, unharmed) })
	wantFootprint(t, node, before)
	if node.AgentPID() != agent || proxyPID(t, node) != proxy {
		t.Error("agent or proxy is another process now")
	}
	if got := enrolled(t, node); len(got) != 2 {
		t.Errorf("enrolled: %v, want both pods", got)
	}
	again := n.Pod(node, "shop", "again", lab.PodOptions{}) // the control: the same way, without a fault
	if err := (pair{again, server}).ask(t.Context(), lab.IPv6, "again"); err != nil {
		t.Error(err)
	}
}

// plugin calls conduit-cni as a runtime does, and returns its error.
func plugin(t *testing.T, node *lab.Node, env map[string]string, stdin string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	path := node.PluginPath()
	cmd := node.Command(ctx, filepath.Join(path[len(path)-1], "conduit-cni"))
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = []string{"CNI_PATH=" + strings.Join(path, ":")}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.Output()
	if err == nil {
		return nil
	}
	var said types.Error
	if jerr := json.Unmarshal(out, &said); jerr != nil {
		t.Errorf("conduit-cni failed (%v), and what it says is no CNI error: %q", err, out)
	}
	return &said
}

const badPrev = `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"interface":0,"address":"10.223.1.250/24"}],"dns":{}}`

// badCalls are calls of the plugin on a node where everything else is well.
func badCalls(t *testing.T, n *testnet.Net, node *lab.Node, unharmed func(*testing.T)) {
	ns, err := n.NewNetns("bad")
	if err != nil {
		t.Fatal(err)
	}
	hanging := silentAgent(t)
	conf := func(version, socket, prev string, more ...string) string {
		fields := append([]string{`"cniVersion":"` + version + `"`, `"name":"net"`, `"type":"conduit-cni"`, `"agentSocket":"` + socket + `"`}, more...)
		if prev != "" {
			fields = append(fields, `"prevResult":`+prev)
		}
		return "{" + strings.Join(fields, ",") + "}"
	}
	good := conf("1.1.0", node.AgentSocket(), badPrev)
	none := filepath.Join(n.Dir(), "none.sock")
	const shop = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=client"
	for name, tt := range map[string]struct {
		stdin, args, netns string // empty: good ones
		code               uint
		says               []string
	}{
		"malformed JSON":    {stdin: good[:len(good)-3], code: 6, says: []string{"unmarshall network config"}},
		"unknown field":     {stdin: conf("1.1.0", node.AgentSocket(), badPrev, `"agentsocket":"x"`), code: 7, says: []string{`"agentsocket"`, "agentSocket", "/etc/cni/net.d"}},
		"wrong version":     {stdin: conf("3.0.0", node.AgentSocket(), badPrev), code: 1, says: []string{"incompatible CNI versions", "3.0.0", "1.1.0"}},
		"no prevResult":     {stdin: conf("1.1.0", node.AgentSocket(), ""), code: 7, says: []string{`no "prevResult"`, "after a primary plugin"}},
		"no agent":          {stdin: conf("1.1.0", none, badPrev), code: 11, says: []string{"shop/client", none, "does not exist", "is the agent running on this node?"}},
		"hanging agent":     {stdin: conf("1.1.0", hanging, badPrev, `"timeout":"1s"`), code: 11, says: []string{"shop/client", hanging, "did not answer in time (at most 1s)", `raise "timeout"`}},
		"unknown namespace": {args: "K8S_POD_NAMESPACE=mars;K8S_POD_NAME=rover", code: 11, says: []string{`namespace "mars" is unknown`, node.ManifestDir(), `add a Namespace "mars" and a Pod "rover"`}},
		"unknown pod":       {args: "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=ghost", code: 11, says: []string{"pod shop/ghost is unknown", node.ManifestDir(), `metadata.name "ghost"`}},
		"no namespace file": {netns: ns.Path() + "-none", code: 8, says: []string{ns.Path() + "-none", "network namespace is gone", "CNI_NETNS must be the path"}},
		"no namespace":      {netns: "/etc/passwd", code: 8, says: []string{"/etc/passwd", "not a network namespace", "CNI_NETNS must be the path"}},
		"the node's own":    {netns: node.Path(), code: 8, says: []string{node.Path(), "the node's own network namespace", "hostNetwork"}},
		"no CNI_ARGS":       {args: "-", code: 4, says: []string{"K8S_POD_NAMESPACE", "K8S_POD_NAME", "CNI_ARGS"}},
	} {
		t.Run(name, func(t *testing.T) {
			env := map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "bad-1", "CNI_IFNAME": "eth0", "CNI_NETNS": ns.Path(), "CNI_ARGS": shop}
			if tt.netns != "" {
				env["CNI_NETNS"] = tt.netns
			}
			if tt.args != "" {
				env["CNI_ARGS"] = strings.TrimPrefix(tt.args, "-")
			}
			if tt.stdin == "" {
				tt.stdin = good
			}
			start := time.Now()
			wantCode(t, "ADD", plugin(t, node, env, tt.stdin), tt.code, tt.says...)
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			env["CNI_COMMAND"] = "DEL"
			if err := plugin(t, node, env, tt.stdin); err != nil && tt.code == 11 {
				t.Errorf("DEL of what was refused: %v", err)
			}
			unharmed(t)
		})
	}
	wantUntouched(t, ns)
}

// silentAgent listens, and never says anything.
func silentAgent(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ct-silent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "cni.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// vipManifest is the Service that bad manifests try to replace; the port is one of many things that can be bad in it.
func vipManifest(port string) string {
	return `apiVersion: v1
kind: Service
metadata:
  name: vip
  namespace: shop
spec:
  clusterIP: ` + lab.ServiceIPs(5)[0].String() + `
  selector:
    app: server
  ports:
  - name: tcp
    port: ` + port + `
    targetPort: 9000
`
}

// badManifests: a bad file is told by name, line and field; what it said before is in force until it is repaired.
func badManifests(t *testing.T, n *testnet.Net, p pair, unharmed func(*testing.T)) {
	node := p.from.(*lab.Pod).Node
	put := func(content string) {
		t.Helper()
		if err := node.WriteManifest("vip.yaml", []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	vip := lab.ServiceIPs(5)[0]
	reach := func(t *testing.T, port uint16) { t.Helper(); p.reachService(t, netip.AddrPortFrom(vip, port)) }
	put(vipManifest("81"))
	reach(t, 81)
	good := vipManifest("82")
	file := filepath.Join(node.ManifestDir(), "vip.yaml")
	for name, tt := range map[string]struct{ content, says string }{
		"syntax":         {strings.Replace(good, "  ports:", "  ports: [", 1), file + ":11: not valid YAML"},
		"unknown field":  {strings.Replace(good, "selector", "selecter", 1), file + ":8: spec.selecter: unknown field"},
		"wrong type":     {vipManifest("eighty"), file + `:12: spec.ports[0].port: want`},
		"unknown kind":   {strings.Replace(good, "kind: Service", "kind: Ingress", 1), file + ":2: kind: v1 Ingress is not supported; supported are"},
		"two of a name":  {good + "---\n" + good, file + ":15: Service shop/vip is there twice (first in line 1)"},
		"defined before": {good + "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n", file + ":15: Namespace shop is defined in " + node.ManifestDir() + "/namespace-shop.yaml:1 already; remove one of the two"},
		"bad address":    {strings.Replace(good, vip.String(), "10.0.0.256", 1), file + `:7: spec.clusterIP: \"10.0.0.256\" is no IP address`},
		"bad annotation": {good + "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  namespace: shop\n  annotations:\n    conduit.io/mtls-mode: strict\n",
			file + `:21: metadata.annotations[\"conduit.io/mtls-mode\"]: want PERMISSIVE or STRICT, got \"strict\"`},
	} {
		t.Run(name, func(t *testing.T) {
			put(tt.content)
			testnet.Eventually(t, 10*time.Second, func(ctx context.Context) error {
				log, err := os.ReadFile(node.AgentLog())
				if err != nil || !strings.Contains(string(log), tt.says) {
					return fmt.Errorf("the agent's log does not say %s (%v)", tt.says, err)
				}
				if got, err := testnet.Metric(ctx, node, "conduit_manifest_errors"); err != nil || got < 1 {
					return fmt.Errorf("conduit_manifest_errors is %v, %w", got, err)
				}
				return nil
			})
			unharmed(t)
			reach(t, 81) // as before
		})
	}
	if log, err := os.ReadFile(node.AgentLog()); err != nil || !strings.Contains(string(log), "what the file said before stays in force") {
		t.Errorf("the agent's log does not say what is in force (%v)", err)
	}
	put(good)
	reach(t, 82)
	testnet.Eventually(t, 10*time.Second, func(ctx context.Context) error {
		if got, err := testnet.Metric(ctx, node, "conduit_manifest_errors"); err != nil || got != 0 {
			return fmt.Errorf("conduit_manifest_errors is %v, %w; want 0 of repaired files", got, err)
		}
		return nil
	})
	if err := n.RemoveManifest("vip.yaml"); err != nil {
		t.Fatal(err)
	}
}

// reachService waits until the client gets to the server by the address of a Service.
func (p pair) reachService(t *testing.T, vip netip.AddrPort) {
	t.Helper()
	testnet.Eventually(t, 10*time.Second, func(ctx context.Context) error {
		c, err := testnet.Dial(ctx, p.from, vip)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second)) // before the Service is known, nobody answers
		if _, err := io.WriteString(c, "by-service\n"); err != nil {
			return err
		}
		got, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && !strings.HasPrefix(got, p.to.Name()+" ") {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
}

// badAgents are agents that must not start, beside one that runs.
func badAgents(t *testing.T, n *testnet.Net, node *lab.Node, unharmed func(*testing.T)) {
	run, bpffs, ca := filepath.Join(n.Dir(), "run2"), node.PinDir()+"-2", filepath.Join(n.Dir(), "ca2")
	if err := os.MkdirAll(ca, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(ca, "ca.crt"), []byte("rubbish\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	standalone := []string{"--standalone", "--manifests", node.ManifestDir(), "--node-name", node.Name(), "--cgroup", n.Cgroup()}
	fresh := slices.Concat(standalone, []string{"--run-dir", run, "--bpffs", bpffs})
	for name, tt := range map[string]struct {
		args []string
		code int
		says []string
	}{
		"no manifests":         {[]string{"--standalone"}, 64, []string{"required with --standalone: --manifests DIR", "--help"}},
		"unknown flag":         {slices.Concat(fresh, []string{"--speed", "9"}), 64, []string{"-speed", "--help"}},
		"no manifest dir":      {[]string{"--standalone", "--manifests", "/none", "--run-dir", run, "--bpffs", bpffs}, 1, []string{"/none", "make the directory"}},
		"no proxy":             {slices.Concat(fresh, []string{"--proxy", "/none"}), 1, []string{"/none", "--proxy PATH"}},
		"no cgroup2":           {slices.Concat(fresh, []string{"--cgroup", n.Dir()}), 1, []string{n.Dir(), "cgroup"}},
		"no bpffs":             {slices.Concat(fresh, []string{"--bpffs", filepath.Join(n.Dir(), "pins")}), 1, []string{filepath.Join(n.Dir(), "pins"), "bpf"}},
		"broken CA":            {slices.Concat(fresh, []string{"--ca-dir", ca}), 1, []string{ca, "ca.crt is there, but ca.key is missing; restore it, or remove both"}},
		"foreign CA":           {slices.Concat(fresh, []string{"--ca-dir", filepath.Join(n.Dir(), "ca"), "--trust-domain", "other.example"}), 1, []string{`trust domain "cluster.local"`, `"other.example"`, "use another directory"}},
		"two on one run-dir":   {slices.Concat(standalone, []string{"--run-dir", node.RunDir(), "--bpffs", bpffs}), 1, []string{"another agent is running", node.RunDir(), fmt.Sprintf("'kill %d'", node.AgentPID()), "another --run-dir"}},
		"two on one bpffs":     {slices.Concat(standalone, []string{"--run-dir", run, "--bpffs", node.PinDir(), "--ca-dir", filepath.Join(n.Dir(), "ca")}), 1, []string{node.PinDir()}},
		"run-dir is not a dir": {slices.Concat(standalone, []string{"--run-dir", "/etc/passwd", "--bpffs", bpffs}), 1, []string{"/etc/passwd"}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := node.Command(ctx, agentBinary(node), tt.args...)
			out, err := cmd.CombinedOutput()
			if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != tt.code {
				t.Errorf("%v, want exit code %d\n%s", err, tt.code, out)
			}
			for _, part := range tt.says {
				if !strings.Contains(string(out), part) {
					t.Errorf("it does not say %q:\n%s", part, out)
				}
			}
			if _, err := os.Stat(bpffs); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s was left behind (%v)", bpffs, err)
				os.RemoveAll(bpffs)
			}
			unharmed(t)
		})
	}
}
