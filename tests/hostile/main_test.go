package hostile

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/cli/metrics"
	"conduit.io/conduit/proxy"
	"conduit.io/conduit/tests/leak"
	"conduit.io/conduit/tests/program"
)

var binary string

// product is what the tests run, linked into them so that a change of it does not find their result cached.
var product = proxy.Run

func TestMain(m *testing.M) {
	if product == nil {
		panic("nothing to test")
	}
	if spec := os.Getenv(attackEnv); spec != "" {
		attackFor(spec)
	}
	// The slow attacks are all made at once, on how ever many processors: they wait.
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(2*len(slow))); err != nil {
		panic(err)
	}
	os.Exit(program.Main(func(dir string) int {
		binary = filepath.Join(dir, "conduit-proxy")
		return leak.Main(m)
	}, "conduit.io/conduit/cmd/conduit-proxy"))
}

// process is a running conduit-proxy.
type process struct {
	t     testing.TB
	cmd   *exec.Cmd
	addrs []string // of its listeners, in order
	admin string

	mu     sync.Mutex
	logged []string // since it has started
}

// listener is an entry of the proxy's configuration.
type listener map[string]any

func to(upstream, protocol string) listener {
	return listener{"address": "127.0.0.1:0", "upstream": upstream, "protocol": protocol}
}

// start runs the proxy until the test ends.
func start(t testing.TB, listeners ...listener) *process {
	t.Helper()
	return startAs(t, nil, listeners...)
}

// startAs has other programs, as setpriv(1) is one, start the proxy.
func startAs(t testing.TB, before []string, listeners ...listener) *process {
	t.Helper()
	data, err := json.Marshal(map[string]any{"listeners": listeners, "admin": "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	args := slices.Concat(before, []string{binary, "--static", file, "--grace", "1s"})
	p := &process{t: t, cmd: exec.Command(args[0], args[1:]...)}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for (p.admin == "" || len(p.addrs) < len(listeners)) && lines.Scan() {
		switch l := lines.Text(); {
		case strings.Contains(l, "msg=listening"):
			p.addrs = append(p.addrs, attr(l, "address"))
		case strings.Contains(l, "admin server started"):
			p.admin = attr(l, "address")
		}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines.Scan() {
			fmt.Fprintln(os.Stderr, lines.Text()) // a panic, above all
			p.mu.Lock()
			p.logged = append(p.logged, lines.Text())
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
		}
		<-ended
		_ = p.cmd.Wait()
	})
	if p.admin == "" {
		t.Fatal("conduit-proxy did not start")
	}
	return p
}

// said counts the lines of the log that have words in them.
func (p *process) said(words string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.logged {
		if strings.Contains(l, words) {
			n++
		}
	}
	return n
}

func attr(line, name string) string {
	_, rest, _ := strings.Cut(line, " "+name+"=")
	v, _, _ := strings.Cut(rest, " ")
	return v
}

// count is the sum of a metric over the series with a label's value.
func (p *process) count(name, label, value string) (n float64) {
	p.t.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + p.admin + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	all, err := metrics.Parse(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, s := range all {
		if s.Name == name && (label == "" || s.Labels[label] == value) {
			n += s.Value
		}
	}
	return n
}

// memory is the proxy's anonymous resident memory in MiB.
func (p *process) memory() float64 {
	p.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[0] == "RssAnon:" {
			kb, err := strconv.Atoi(f[1])
			if err != nil {
				p.t.Fatal(err)
			}
			return float64(kb) / 1024
		}
	}
	p.t.Fatal("no RssAnon: the proxy has ended")
	return 0
}
