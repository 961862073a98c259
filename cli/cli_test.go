package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"conduit.io/conduit/cli/preflight"
	"conduit.io/conduit/mesh"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// goodSystem is a machine on which everything is well.
func goodSystem() preflight.System {
	return preflight.System{UID: 0, Release: "6.1.0-test", BinDir: "/opt/conduit",
		Root: fstest.MapFS{
			"proc/self/status":       {Data: []byte("Name:\tconduit\nCapEff:\t000001ffffffffff\n")},
			"proc/self/mountinfo":    {Data: []byte("30 24 0:27 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n31 24 0:28 / /sys/fs/bpf rw - bpf bpf rw\n")},
			"sys/kernel/btf/vmlinux": {Data: []byte{1}},
		},
		Find:    func(string) bool { return true },
		Version: func(string) (string, error) { return "conduit-agent " + mesh.Version(), nil },
	}
}

// run runs one command line in-process.
func run(t *testing.T, s preflight.System, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	env := Env{In: strings.NewReader(""), Out: &o, Err: &e, Getenv: func(string) string { return "" },
		System: func() preflight.System { return s }}
	code = Run(t.Context(), env, args)
	return code, o.String(), e.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test -update rewrites it):\n%s", path, diff)
	}
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		args string
		code int
		err  string // part of stderr
	}{
		{"", 0, ""},
		{"--help", 0, ""},
		{"--version", 0, ""},
		{"version", 0, ""},
		{"version extra", 64, "unknown command"},
		{"frobnicate", 64, "next:  conduit --help"},
		{"stat --nonsense", 64, "next:  conduit stat --help"},
		{"stat -o yaml", 64, "want table, wide or json"},
		{"stat --window -1s", 64, "is negative"},
		{"stat --window soon", 64, "next:  conduit stat --help"},
		{"stat --side left", 64, "want outbound or inbound"},
		{"check extra", 64, "next:  conduit check --help"},
		{"demo --for -3s", 64, "--for is negative"},
		{"demo --rate 0", 64, "--rate: want more than 0"},
		{"demo --rate NaN", 64, "--rate: want more than 0"},
		{"help demo", 0, ""},
		{"help frobnicate", 64, `unknown command "frobnicate"`},
		{"completion", 64, "accepts 1 arg"},
		{"completion tcsh", 64, "want bash, zsh or fish"},
		{"demo-app {", 1, "read configuration"},
		{"install extra", 64, "next:  conduit install --help"},
		{"install --wait", 64, "--wait is for --apply"},
		{"install -n shop", 64, "Conduit is in the namespace conduit"},
		{"install --set agent.nonsense=1", 1, "'nonsense' not allowed"},
		{"install --set controller", 64, "--set controller"},
		{"install -f /nonexistent", 1, "no such file"},
		{"install --timeout 0s", 64, "want more than 0"},
		{"upgrade extra", 64, "next:  conduit upgrade --help"},
		{"uninstall extra", 64, "next:  conduit uninstall --help"},
		{"uninstall --apply --kubeconfig /nonexistent", 1, "no cluster to work on"},
		{"mesh", 64, "requires at least 1 arg"},
		{"mesh ns/shop web", 64, "want ns/NAME or pod/NAME"},
		{"unmesh deploy/web", 64, "in the template of its pods"},
		{"check --pre --node", 64, "about this machine"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			code, out, errOut := run(t, goodSystem(), strings.Fields(tc.args)...)
			if code != tc.code || !strings.Contains(errOut, tc.err) {
				t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", code, tc.code, out, errOut)
			}
			if tc.code != 0 && out != "" {
				t.Errorf("an error on stdout: %q", out)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	if _, out, _ := run(t, goodSystem(), "version"); out != "conduit "+mesh.Version()+"\n" {
		t.Errorf("version: %q", out)
	}
	var v struct{ Version, Platform string }
	_, out, _ := run(t, goodSystem(), "version", "-o", "json")
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Version != mesh.Version() || !strings.Contains(v.Platform, "/") {
		t.Errorf("version -o json: %q (%v)", out, err)
	}
}

func TestCompletion(t *testing.T) {
	for shell, want := range map[string]string{"bash": "__start_conduit", "zsh": "#compdef conduit", "fish": "complete -c conduit"} {
		code, out, errOut := run(t, goodSystem(), "completion", shell)
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: exit code %d, no %q, stderr %q", shell, code, want, errOut)
		}
	}
}

// TestBashCompletes: the script completes in a bash that has no bash-completion package.
func TestBashCompletes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	_, script, _ := run(t, goodSystem(), "completion", "bash")
	// The program under completion is this one's command line, which a test binary does not have: a function stands for it.
	script += `
conduit() { [ "$*" = "__complete demo -o j" ] && printf 'json\n:4\n'; }
compopt() { :; } # it works only below a real TAB
COMP_WORDS=(conduit demo -o j) COMP_CWORD=3
__start_conduit
echo "${COMPREPLY[@]}"
`
	cmd := exec.Command(bash, "--norc", "--noprofile")
	cmd.Stdin = strings.NewReader(script)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(out)) != "json" || errOut.String() != "" {
		t.Errorf("completed to %q, %v, stderr %q", out, err, errOut.String())
	}
}

// TestFlagValues: shells offer the values of flags, and no files where none belong.
func TestFlagValues(t *testing.T) {
	for line, want := range map[string]string{
		"version -o": "table\nwide\njson\n:4\n", "stat --side": "outbound\ninbound\n:4\n", "demo": ":4\n", "demo --for": ":4\n",
	} {
		_, out, _ := run(t, goodSystem(), append(append([]string{"__complete"}, strings.Fields(line)...), "")...)
		if out != want {
			t.Errorf("%s: offered %q, want %q", line, out, want)
		}
	}
}

// TestOutputIsLost: a report that could not be written is an error.
func TestOutputIsLost(t *testing.T) {
	for _, args := range []string{"version", "version -o wide", "version -o json", "check", "check -o json"} {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		var errOut strings.Builder
		env := Env{Out: full, Err: &errOut, Getenv: func(string) string { return "" }, System: goodSystem}
		if code := Run(t.Context(), env, strings.Fields(args)); code != ExitError || !strings.Contains(errOut.String(), "no space left") {
			t.Errorf("%s: exit code %d, stderr %q", args, code, errOut.String())
		}
		full.Close()
	}
}

func TestCheck(t *testing.T) {
	bad := goodSystem()
	bad.UID = 1000
	bad.Release = "5.10.0"
	bad.Root = fstest.MapFS{"proc/self/status": {Data: []byte("CapEff:\t0000000000000000\n")}, "proc/self/mountinfo": {},
		"sys/kernel/security/lockdown": {Data: []byte("none integrity [confidentiality]\n")}}
	bad.Find = func(path string) bool { return strings.HasSuffix(path, "agent") }
	bad.Version = func(string) (string, error) { return "", errors.New("exec format error") }
	old := goodSystem()
	old.Version = func(string) (string, error) { return "conduit-agent v0.0.1", nil }
	for _, tc := range []struct {
		name string
		s    preflight.System
		code int
	}{{"good", goodSystem(), 0}, {"bad", bad, 1}, {"warning", old, 0}} {
		t.Run(tc.name, func(t *testing.T) {
			code, out, errOut := run(t, tc.s, "check")
			if code != tc.code || errOut != "" {
				t.Errorf("exit code %d, want %d, stderr %q", code, tc.code, errOut)
			}
			golden(t, "check-"+tc.name+".txt", strings.ReplaceAll(out, mesh.Version(), "VERSION"))
			code, out, _ = run(t, tc.s, "check", "-o", "json")
			var r preflight.Report
			if err := json.Unmarshal([]byte(out), &r); err != nil || code != tc.code || r.Success != (tc.code == 0) || len(r.Categories) != 4 {
				t.Errorf("check -o json: exit code %d, %v, %s", code, err, out)
			}
		})
	}
}

// TestDemoRefuses: each missing thing has its own message and next step.
func TestDemoRefuses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*preflight.System)
		want  []string
	}{
		{"no root", func(s *preflight.System) { s.UID = 1000 }, []string{"needs root", "sudo conduit demo"}},
		{"no cgroup2", func(s *preflight.System) { s.Root.(fstest.MapFS)["proc/self/mountinfo"].Data = nil },
			[]string{"needs a mounted cgroup2", "mount -t cgroup2"}},
		{"no BTF", func(s *preflight.System) { delete(s.Root.(fstest.MapFS), "sys/kernel/btf/vmlinux") },
			[]string{"(BTF)", "CONFIG_DEBUG_INFO_BTF"}},
		{"old kernel", func(s *preflight.System) { s.Release = "5.10.0-31-amd64" }, []string{"5.15 or newer", "this is 5.10.0-31"}},
		{"no programs", func(s *preflight.System) { s.Find = func(string) bool { return false } }, []string{"/opt/conduit/conduit-agent", "make build"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := goodSystem()
			tc.spoil(&s)
			code, out, errOut := run(t, s, "demo", "-o", "json")
			if code != 1 || out != "" {
				t.Errorf("exit code %d, stdout %q", code, out)
			}
			for _, want := range append(tc.want, "cause: ", "next:  ") {
				if !strings.Contains(errOut, want) {
					t.Errorf("stderr lacks %q: %s", want, errOut)
				}
			}
		})
	}
}

// agent serves recorded metrics, the i-th of the readings to the i-th request.
func agent(t *testing.T, readings ...string) string {
	t.Helper()
	var n atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, readings[min(int(n.Add(1)), len(readings))-1])
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func recorded(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("testdata/node-a.prom")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestStatTotals(t *testing.T) {
	addr := agent(t, recorded(t))
	for name, args := range map[string][]string{
		"table": nil, "wide": {"-o", "wide"}, "json": {"-o", "json"}, "inbound": {"--side", "inbound"}, "named": {"cache"},
		"two-nodes": {"--admin", agent(t, recorded(t)), "api"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errOut := run(t, goodSystem(), append([]string{"stat", "--window", "0", "--admin", addr}, args...)...)
			if code != 0 || errOut != "" {
				t.Errorf("exit code %d, stderr %q", code, errOut)
			}
			golden(t, "stat-"+name+".txt", out)
		})
	}
}

// TestStatWindow: what was there before the window does not count.
func TestStatWindow(t *testing.T) {
	later := strings.Replace(recorded(t), `protocol="http1",tls="mtls",route="default"} 60`, `protocol="http1",tls="mtls",route="default"} 80`, 1)
	code, out, errOut := run(t, goodSystem(), "stat", "--window", "50ms", "--admin", agent(t, recorded(t), later), "-o", "json", "api")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	var got struct {
		Window float64 `json:"window_seconds"`
		Edges  []struct {
			Calls, RPS  float64
			SuccessRate *float64 `json:"success_rate"`
		}
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Edges) != 1 || got.Edges[0].Calls != 20 || got.Window < 0.05 || got.Edges[0].SuccessRate != nil {
		t.Fatalf("got %+v", got)
	}
	if rate := got.Edges[0].RPS; rate <= 0 || rate > 20/0.05 {
		t.Errorf("rate %v", rate)
	}
	if _, out, errOut := run(t, goodSystem(), "stat", "--window", "10ms", "--admin", agent(t, "")); out != "" || !strings.Contains(errOut, "No traffic in 10ms") {
		t.Errorf("nothing: stdout %q, stderr %q", out, errOut)
	}
}

func TestStatErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for name, addr := range map[string]string{
		"connection refused": l.Addr().String(),
		"metrics line 1":     agent(t, "this is not a metric"),
		"no such file":       "unix:" + filepath.Join(t.TempDir(), "none.sock"),
		"invalid character":  "http://%%%",
		"hangs up":           agentThatHangsUp(t),
	} {
		code, out, errOut := run(t, goodSystem(), "stat", "--window", "0", "--admin", addr)
		if code != 1 || out != "" || !strings.Contains(errOut, "read metrics of "+addr) || !strings.Contains(errOut, "next:  conduit stat") {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", name, code, out, errOut)
		}
	}
}

func agentThatHangsUp(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
			c.Close()
		}
	}()
	return l.Addr().String()
}

// TestStatUnixSocket reads an agent that listens on a path.
func TestStatUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	text := recorded(t)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })}
	go s.Serve(l)
	defer s.Close()
	code, out, errOut := run(t, goodSystem(), "stat", "--window", "0", "--admin", "unix:"+path, "shop/cache")
	if code != 0 || !strings.Contains(out, "shop/cache") || strings.Contains(out, "shop/api") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errOut)
	}
}

func TestPanicIsReported(t *testing.T) {
	s := goodSystem()
	s.Find = func(string) bool { panic("the sky falls") }
	code, _, errOut := run(t, s, "check")
	if code != 1 || !strings.Contains(errOut, "internal error: the sky falls") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}
