package netns_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// proberEnv makes the test binary a prober: a process of a node that says hello to every address which it reads, and says
// what became of it. It may serve the kubelet's port; then it is the node's kubelet.
const proberEnv = "CDT_NETNS_TEST_PROBER"

const kubeletPort = "127.0.0.1:10250"

func beProber() int {
	if addr := os.Getenv(proberEnv); addr != "nobody" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(greet(in.Text()))
	}
	return 0
}

// greet is "hello" or what went wrong.
func greet(addr string) string {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	said, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return "<" + string(said) + ">"
}

// prober is such a process.
type prober struct {
	t    *testing.T
	cmd  *lab.Cmd
	in   io.WriteCloser
	said *bufio.Reader
}

func startProber(t *testing.T, node *lab.Node, serves string) *prober {
	t.Helper()
	p := &prober{t: t, cmd: node.Command(t.Context(), "/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), proberEnv+"="+serves)
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.said = in, bufio.NewReader(out)
	t.Cleanup(p.end)
	if said := p.hear(); said != "ready" {
		t.Fatalf("the prober says %q", said)
	}
	return p
}

func (p *prober) end() { p.in.Close(); p.cmd.Wait() }

func (p *prober) hear() string {
	p.t.Helper()
	line, err := p.said.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the prober has ended: %v", err)
	}
	return strings.TrimSpace(line)
}

func (p *prober) greet(to netip.AddrPort) string {
	p.t.Helper()
	fmt.Fprintln(p.in, to)
	return p.hear()
}

// probed is a STRICT pod with an application, and a process of its node.
type probed struct {
	t    *testing.T
	node *lab.Node
	to   []netip.AddrPort // the application, by IPv4 and by IPv6
}

// want greets the application and expects an answer, or none.
func (p *probed) want(who string, from *prober, answered bool) {
	p.t.Helper()
	for _, to := range p.to {
		if got := from.greet(to); (got == "<hello>") != answered {
			p.t.Errorf("%s, to %v: %s; answered should be %v", who, to, got, answered)
		}
	}
}

// wantKnown waits until the agent knows a kubelet, or does not.
func (p *probed) wantKnown(known float64) {
	p.t.Helper()
	testnet.Eventually(p.t, 10*time.Second, func(ctx context.Context) error {
		got, err := testnet.Metric(ctx, p.node, "conduit_kubelet_known")
		if err == nil && got != known {
			err = fmt.Errorf("conduit_kubelet_known is %v, want %v", got, known)
		}
		return err
	})
}

// TestKubeletProbes: of the processes of a node, the one that serves the kubelet's port reaches the application of a STRICT
// pod in plaintext, and no other does, whatever happens to kubelets, agents and proxies.
func TestKubeletProbes(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	strict := map[string]string{"conduit.io/mtls-mode": "STRICT", "conduit.io/agent-down": "Closed"}
	if err := n.WriteNamespace("shop", map[string]string{"conduit.io/mesh": "enabled"}, strict); err != nil {
		t.Fatal(err)
	}
	node := n.MeshNode("one", lab.NodeConfig{})
	pod := n.Pod(node, "shop", "web", lab.PodOptions{Probe: 8080})
	port := testnet.Echo(t, pod, 8080)
	p := &probed{t: t, node: node, to: []netip.AddrPort{netip.AddrPortFrom(pod.IP(lab.IPv4), port), netip.AddrPortFrom(pod.IP(lab.IPv6), port)}}
	other := startProber(t, node, "nobody")
	p.want("nobody is the kubelet", other, false)

	kubelet := startProber(t, node, kubeletPort)
	p.wantKnown(1)
	p.want("the kubelet", kubelet, true)
	p.want("another process", other, false)
	elsewhere := netip.AddrPortFrom(pod.IP(lab.IPv4), testnet.Echo(t, pod, 8090))
	if got := kubelet.greet(elsewhere); got == "<hello>" {
		t.Errorf("the kubelet is answered at a port that no probe names")
	}
	if got := bypassed(t, pod, "probe"); got != 2 {
		t.Errorf("%v probes are counted, want 2", got)
	}

	kubelet.end()
	p.wantKnown(0)
	p.want("another process, after the kubelet", other, false)
	again := startProber(t, node, kubeletPort)
	p.wantKnown(1)
	p.want("the kubelet, started again", again, true)
	p.want("another process", other, false)

	killAgent(t, node)
	p.want("the kubelet, without an agent", again, true)
	p.want("another process, without an agent", other, false)
	killProxy(t, node)
	p.want("the kubelet, without agent and proxy", again, true)
	p.want("another process, without agent and proxy", other, false)
	if err := node.StartAgent(t.Context(), lab.AgentConfig{}); err != nil {
		t.Fatal(err)
	}
	p.want("the kubelet, with a new agent", again, true)
	p.want("another process, with a new agent", other, false)

	if err := node.StopAgent(); err != nil {
		t.Fatal(err)
	}
	if err := node.StartAgent(t.Context(), lab.AgentConfig{Args: []string{"--kubelet-port=0"}}); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 5*time.Second, func(context.Context) error {
		if got := again.greet(p.to[0]); got == "<hello>" {
			return fmt.Errorf("the kubelet is still vouched for")
		}
		return nil
	})
}
