package proxy_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/proxy"
	"conduit.io/conduit/proxy/sock"
	"conduit.io/conduit/tests/program"
)

var binary string

// product is what the tests run, linked into them so that a change of it does not find their result cached.
var product = proxy.Run

func TestMain(m *testing.M) {
	if product == nil {
		panic("nothing to test")
	}
	if os.Getenv(webSocketApp) != "" {
		serveWebSocket()
		return
	}
	os.Exit(program.Main(func(dir string) int {
		binary = filepath.Join(dir, "conduit-proxy")
		return m.Run()
	}, "conduit.io/conduit/cmd/conduit-proxy"))
}

// config is the JSON of a static configuration.
type config map[string]any

// process is a running conduit-proxy.
type process struct {
	cmd   *exec.Cmd
	addrs []string // of its listeners, in order
	admin string
	lines chan string
}

// startProxy runs the binary with c; listeners on port 0 are resolved from its log.
func startProxy(t *testing.T, c config) *process {
	t.Helper()
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(binary, "--static", file, "--log-level", "debug", "--grace", "2s"), lines: make(chan string, 10000)}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		if t.Failed() {
			for l := range p.lines {
				t.Log(l)
			}
		}
	})
	go func() {
		defer close(p.lines)
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			select {
			case p.lines <- sc.Text():
			default:
			}
		}
	}()
	p.await(t, c)
	return p
}

// await reads the log until every listener of c is open.
func (p *process) await(t *testing.T, c config) {
	t.Helper()
	want := len(c["listeners"].([]any))
	if c["admin"] != nil {
		want++
	}
	deadline := time.After(10 * time.Second)
	for n := 0; n < want; {
		select {
		case l, ok := <-p.lines:
			if !ok {
				t.Fatal("conduit-proxy ended")
			}
			switch {
			case strings.Contains(l, "msg=listening"):
				p.addrs = append(p.addrs, attr(l, "address"))
				n++
			case strings.Contains(l, "admin server started"):
				p.admin = attr(l, "address")
				n++
			}
		case <-deadline:
			t.Fatal("conduit-proxy did not start in time")
		}
	}
}

func attr(line, name string) string {
	_, rest, _ := strings.Cut(line, " "+name+"=")
	v, _, _ := strings.Cut(rest, " ")
	return v
}

// listen opens a loopback listener that is closed with the test.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func proxyTo(upstream, protocol string) config {
	return config{"address": "127.0.0.1:0", "upstream": upstream, "protocol": protocol}
}

func runProxy(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	var o, e strings.Builder
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func TestCommandLine(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{"listeners":[{"address":"127.0.0.1:0","upstrem":"127.0.0.1:1"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		want string // in stdout or stderr
	}{
		{"help", []string{"--help"}, 0, "--static FILE.json"},
		{"version", []string{"--version"}, 0, "conduit-proxy dev"},
		{"nothing", nil, 64, "give one of"},
		{"unknown flag", []string{"--frobnicate"}, 64, "frobnicate"},
		{"two modes", []string{"--link", "/x", "--static", "/y"}, 64, "give one of"},
		{"argument", []string{"--version", "x"}, 64, `unexpected argument "x"`},
		{"no file", []string{"--static", "/nonexistent.json"}, 64, "/nonexistent.json"},
		{"bad field", []string{"--static", bad}, 64, "listeners[0].upstrem: unknown field"},
		{"bad descriptor", []string{"--link-fd", "77"}, 64, "bad file descriptor\n"},
		{"bad shards", []string{"--link", "/x", "--shards", "0"}, 64, "--shards"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, e, code := runProxy(t, c.args...)
			if code != c.code || !strings.Contains(o+e, c.want) {
				t.Errorf("exit %d, output %q", code, o+e)
			}
		})
	}
}

// roomFor is how many descriptors of a process the kernel has room for (proc_pid_status(5)).
func roomFor(t *testing.T, pid int) (n int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, size, _ := strings.Cut(string(status), "FDSize:")
	if _, err := fmt.Sscan(size, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAdminAndSignals(t *testing.T) {
	up := listen(t)
	c := config{"listeners": []any{proxyTo(up.Addr().String(), "opaque")}, "admin": "127.0.0.1:0"}
	p := startProxy(t, c)
	for request, want := range map[string]string{
		"GET /metrics": "conduit_proxy_connections_total 0", "GET /healthz": "200", "GET /readyz": "200", "GET /x": "404",
		"GET /metrics?debug=1": "conduit_proxy_connections_total 0", "HEAD /healthz": "200", "POST /metrics": "\r\nallow: GET, HEAD\r\n",
	} {
		conn, err := net.Dial("tcp", p.admin)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", request)
		b, err := io.ReadAll(conn)
		conn.Close()
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %v %q", request, err, b)
		}
	}
	if n := roomFor(t, p.cmd.Process.Pid); n < min(1<<14, sock.Descriptors()) {
		t.Errorf("there is room for %d descriptors: thousands of connections are held up when it has to grow", n)
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("SIGTERM with no connection: %v", err)
	}
}
