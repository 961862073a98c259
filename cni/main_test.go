package cni_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"conduit.io/conduit/api/frame"
	"conduit.io/conduit/api/podapi"
	"conduit.io/conduit/tests/program"
)

var binary string

func TestMain(m *testing.M) {
	os.Exit(program.Main(func(dir string) int {
		binary = filepath.Join(dir, "conduit-cni")
		return m.Run()
	}, "conduit.io/conduit/cmd/conduit-cni"))
}

// outcome is how a call of the plugin ended.
type outcome struct {
	stdout, stderr string
	failed         *types.Error // from standard output, when the exit status says so
	took           time.Duration
}

// call runs the built plugin with an environment and standard input as a runtime does. A variable that is set to
// the empty string is left out.
func call(t *testing.T, env map[string]string, stdin string) outcome {
	t.Helper()
	cmd := exec.Command(binary)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	for k, v := range env {
		if v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	o := outcome{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(start)}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err != nil {
		o.failed = &types.Error{}
		if jerr := json.Unmarshal(stdout.Bytes(), o.failed); jerr != nil {
			t.Fatalf("the plugin failed (%v) without a CNI error on standard output: %q; stderr %q", err, o.stdout, o.stderr)
		}
	}
	return o
}

// env is a complete environment for a verb, with changes: pairs of name and value.
func env(verb string, changes ...string) map[string]string {
	e := map[string]string{
		"CNI_COMMAND":     verb,
		"CNI_CONTAINERID": "c0ffee",
		"CNI_NETNS":       "/run/netns/not-there",
		"CNI_IFNAME":      "eth0",
		"CNI_PATH":        "/opt/cni/bin",
		"CNI_ARGS":        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=1234;K8S_POD_INFRA_CONTAINER_ID=c0ffee;OTHER=1",
	}
	for i := 0; i < len(changes); i += 2 {
		e[changes[i]] = changes[i+1]
	}
	return e
}

// prev is a result as a dual-stack bridge gives it, in the form of specification 1.x, with fields that only a
// verbatim copy would keep.
const prev = `{"cniVersion":"1.1.0","interfaces":[{"name":"cni0","mac":"aa:bb:cc:00:00:01"},{"name":"veth1","mac":"aa:bb:cc:00:00:02"},
 {"name":"eth0","mac":"aa:bb:cc:00:00:03","mtu":1400,"sandbox":"/run/netns/not-there","x-vendor":{"b":2,"a":1}}],
 "ips":[{"interface":2,"address":"192.0.2.7/24","gateway":"192.0.2.1"},{"interface":2,"address":"2001:db8::7/64","gateway":"2001:db8::1"}],
 "routes":[{"dst":"0.0.0.0/0","priority":10},{"dst":"::/0"}],"dns":{"nameservers":["192.0.2.53"],"search":["shop.svc"]},"x-top":1.50}`

// conf is a plugin configuration; extra is JSON members to add, such as `"timeout":"1s"`.
func conf(version, socket, prevResult string, extra ...string) string {
	members := []string{`"name":"pods"`, `"type":"conduit-cni"`, fmt.Sprintf(`"cniVersion":%q`, version)}
	if socket != "" {
		members = append(members, fmt.Sprintf(`"agentSocket":%q`, socket))
	}
	if prevResult != "" {
		members = append(members, `"prevResult":`+prevResult)
	}
	return "{" + strings.Join(append(members, extra...), ",") + "}"
}

// agent is a Unix socket server that speaks the agent's protocol: it records requests and answers as told.
type agent struct {
	socket string

	mu       sync.Mutex
	requests []podapi.Request
}

// newAgent serves until the test ends. A nil answer reads the request and never replies.
func newAgent(t *testing.T, answer *podapi.Response) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "cni") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &agent{socket: filepath.Join(dir, "cni.sock")}
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go a.serve(frame.New(c.(*net.UnixConn)), answer)
		}
	}()
	return a
}

func (a *agent) serve(c *frame.Conn, answer *podapi.Response) {
	defer c.Close()
	var req podapi.Request
	if _, err := c.Receive(&req); err != nil {
		return
	}
	a.mu.Lock()
	a.requests = append(a.requests, req)
	a.mu.Unlock()
	if answer == nil {
		c.Receive(&req) // returns when the plugin has given up
		return
	}
	c.Send(answer)
}

// only returns the one request that was made.
func (a *agent) only(t *testing.T) podapi.Request {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.requests) != 1 {
		t.Fatalf("the agent got %d requests, want 1: %+v", len(a.requests), a.requests)
	}
	return a.requests[0]
}

func (a *agent) none(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.requests) != 0 {
		t.Errorf("the agent got requests, want none: %+v", a.requests)
	}
}

// wantError checks the code and that message and hint together contain every part.
func (o outcome) wantError(t *testing.T, code uint, parts ...string) {
	t.Helper()
	if o.failed == nil {
		t.Fatalf("the plugin succeeded, want error %d; stdout %q", code, o.stdout)
	}
	if o.failed.Code != code {
		t.Errorf("error code %d, want %d: %v", o.failed.Code, code, o.failed)
	}
	for _, part := range parts {
		if text := o.failed.Msg + "\n" + o.failed.Details; !strings.Contains(text, part) {
			t.Errorf("error %q does not mention %q", text, part)
		}
	}
}
