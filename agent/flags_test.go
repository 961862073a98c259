package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name, args string
		code       int
		stdout     string
		stderr     string
	}{
		{"help", "--help", 0, "Usage:", ""},
		{"version", "--version", 0, "conduit-agent ", ""},
		{"no cluster", "", 1, "", "this is no pod of a cluster"},
		{"no kubeconfig", "--kubeconfig " + dir + "/none", 1, "", "read --kubeconfig"},
		{"no manifests", "--standalone", 64, "", "required with --standalone: --manifests DIR"},
		{"manifests of a cluster", "--manifests x", 64, "", "are for --standalone"},
		{"controller without TLS", "--controller http://x", 64, "", "want https://HOST:PORT"},
		{"unknown flag", "--frobnicate", 64, "", "flag provided but not defined: -frobnicate"},
		{"unknown argument", "--standalone --manifests x start", 64, "", `unexpected argument "start"`},
		{"bad level", "--log-level loud", 64, "", `invalid value "loud"`},
		{"bad trust domain", "--standalone --manifests x --trust-domain Big/x", 64, "", `--trust-domain "Big/x"`},
		{"root as run directory", "--uninstall --run-dir /", 64, "", "directories of their own"},
		{"long run directory", "--uninstall --run-dir /" + strings.Repeat("x", 100), 64, "", "too long for the sockets"},
		{"manifests missing", "--standalone --proxy /bin/true --manifests " + dir + "/none", 1, "", "make the directory"},
		{"proxy missing", "--standalone --manifests " + dir + " --proxy " + dir + "/none", 1, "", "name it with --proxy PATH"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.code == 1 && os.Getuid() != 0 {
				t.Skip("SKIPPED: needs root to get past the check for it")
			}
			var out, errs bytes.Buffer
			code := Main(Env{Args: strings.Fields(tt.args), Stdout: &out, Stderr: &errs})
			if code != tt.code || !strings.Contains(out.String(), tt.stdout) || !strings.Contains(errs.String(), tt.stderr) {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", code, &out, &errs, tt.code, tt.stdout, tt.stderr)
			}
			if (tt.code == 0) != (errs.Len() == 0) {
				t.Errorf("exit %d with stderr %q", code, &errs)
			}
		})
	}
}

// The Service's own address is another way to the controller, and none to one that was named.
func TestControllersAddress(t *testing.T) {
	env := map[string]string{"CONDUIT_CONTROLLER_SERVICE_HOST": "fd00::7", "CONDUIT_CONTROLLER_SERVICE_PORT": "8085"}
	getenv := func(key string) string { return env[key] }
	for _, tt := range []struct {
		args   []string
		getenv func(string) string
		want   string
	}{
		{nil, getenv, "[fd00::7]:8085"},
		{nil, nil, ""},
		{nil, func(string) string { return "" }, ""},
		{[]string{"--controller", "https://elsewhere:8085"}, getenv, ""},
	} {
		if c, _, ok := parse(Env{Args: tt.args, Getenv: tt.getenv}); !ok || c.controlAt != tt.want {
			t.Errorf("%v: %q, want %q", tt.args, c.controlAt, tt.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	c, code, ok := parse(Env{Args: []string{"--standalone", "--manifests", "m", "--run-dir", "/run/x"}})
	if !ok || code != 0 {
		t.Fatalf("parse: exit %d", code)
	}
	wd, _ := os.Getwd()
	host, _ := os.Hostname()
	if c.manifests != filepath.Join(wd, "m") || c.caDir != "/run/x/ca" || c.node != host || c.trustDomain != "cluster.local" ||
		c.bpffs != "/sys/fs/bpf/conduit" || filepath.Base(c.proxy) != "conduit-proxy" || !filepath.IsAbs(c.proxy) {
		t.Errorf("defaults: %+v", c)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	l, pid, err := acquire(dir)
	if err != nil || pid != os.Getpid() {
		t.Fatalf("acquire: pid %d, %v", pid, err)
	}
	if _, pid, err := acquire(dir); err != errRunning || pid != os.Getpid() {
		t.Errorf("second acquire: pid %d, %v", pid, err)
	}
	l.release(false)
	l, _, err = acquire(dir)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	l.release(true)
	if _, err := os.Stat(filepath.Join(dir, pidFile)); !os.IsNotExist(err) {
		t.Error("agent.pid is still there")
	}
}
