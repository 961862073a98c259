package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"conduit.io/conduit/tests/bench/peers"
	"conduit.io/conduit/tests/bench/report"
	"conduit.io/conduit/tests/bench/workload"
	"conduit.io/conduit/tests/leak"
	"conduit.io/conduit/tests/program"
)

// bin has the programs that a benchmark starts, built by TestMain.
var bin string

func TestMain(m *testing.M) {
	os.Exit(program.Main(func(dir string) int {
		bin = dir
		if err := program.Build(filepath.Join(dir, "bench"), "conduit.io/conduit/tests/load", "conduit.io/conduit/tests/bench/control/..."); err != nil {
			panic(err)
		}
		return leak.Main(m)
	}, "conduit.io/conduit/cmd/conduit-proxy"))
}

// benchmark runs the command and returns what it says and the report that it wrote.
func benchmark(t *testing.T, args ...string) (stdout string, r *report.Run) {
	t.Helper()
	out := t.TempDir()
	var o, e bytes.Buffer
	if code := run(t.Context(), append([]string{"--bin", bin, "--out", out, "--realtime=false"}, args...), &o, &e); code != exitOK {
		t.Fatalf("exit status %d\n%s\n%s", code, &o, &e)
	}
	return o.String(), written(t, out)
}

// written is the one report in a directory.
func written(t *testing.T, dir string) *report.Run {
	t.Helper()
	r, err := report.Read(only(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// only is the path of the one report in a directory.
func only(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("reports %v, %v", files, err)
	}
	return files[0]
}

// With too little time for a second round there is none.
func TestWithin(t *testing.T) {
	_, r := benchmark(t, "--within", "1ms", "--rounds", "1000", "--sample", "50ms", "--no-memory", "--peers", "conduit", "--workloads", "h2-c10-m10")
	if r.Settings.Rounds != 1 || len(r.Samples) != 1 {
		t.Errorf("%d rounds, %d samples", r.Settings.Rounds, len(r.Samples))
	}
}

// Every workload works with Conduit and the controls, and every sample has what its kind is about.
func TestEveryWorkload(t *testing.T) {
	if testing.Short() {
		t.Skip("measures for ten seconds")
	}
	stdout, r := benchmark(t, "--rounds", "1", "--sample", "50ms", "--latency", "500ms", "--no-memory",
		"--peers", "direct,l4,l4-2,conduit,conduit-mesh,tls-ends,tls-relay-mesh")
	seen := map[string]int{}
	for _, s := range r.Samples {
		seen[s.Workload]++
		proxied := s.Peer != peers.Direct
		switch {
		case s.Error != "" || s.Completed == 0 || s.Seconds <= 0:
			t.Errorf("%s, %s: %+v", s.Workload, s.Peer, s)
		case proxied && (s.CPU <= 0 || s.RSS == 0 || s.Anon == 0):
			t.Errorf("%s, %s: nothing measured: %+v", s.Workload, s.Peer, s)
		}
	}
	for _, w := range workload.All {
		want := 5 // without the controls of TLS
		if w.Kind == workload.Bulk {
			want = 7
		}
		if seen[w.Name] != want {
			t.Errorf("%s: %d samples instead of %d", w.Name, seen[w.Name], want)
		}
	}
	for _, want := range []string{"Goals", "two crypto/tls ends", "Conduit, 2 hops mTLS"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in\n%s", want, stdout)
		}
	}
}

// Every peer that is installed forwards in every lane that it is said to have, alone and in a mesh.
func TestEveryPeerForwards(t *testing.T) {
	b, err := open(t.Context(), &options{bin: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.rig.Close)
	lanes := []peers.Lane{peers.H2, peers.GRPC, peers.H1, peers.H1H2}
	for _, d := range peers.Defs() {
		if !d.ServesAny(lanes) {
			continue
		}
		t.Run(d.Name, func(t *testing.T) {
			if _, err := b.starter.Find(d); err != nil {
				t.Skip(err)
			}
			p, err := b.starter.Start(t.Context(), d, d.Name, lanes)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Stop()
			for _, w := range workload.All {
				if w.Kind != workload.CPU || !d.Serves(w.Lane) {
					continue
				}
				// Rather more requests than connections.
				o, err := b.tools.Run(t.Context(), w, p, workload.Size{Requests: 3 * w.Connections})
				if err != nil || o.Completed != 3*w.Connections || o.Failed != 0 {
					t.Errorf("%s: %+v, %v", w.Name, o, err)
				}
			}
		})
	}
}

// What was measured until then is kept, less the round that had just begun.
func TestInterruptedBenchmarkEndsItsProcesses(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var stdout bytes.Buffer
	out := t.TempDir()
	progress := &watched{until: "round 2", then: cancel} // with the first of the two samples
	args := []string{"--bin", bin, "--out", out, "--realtime=false", "--peers", "conduit", "--workloads", "h2-c10-m10,h1-c50", "--no-memory", "--rounds", "1000", "--sample", "50ms"}
	if code := run(ctx, args, &stdout, progress); code != exitError {
		t.Errorf("exit status %d", code)
	}
	if r := written(t, out); r.Settings.Rounds != 1 || len(r.Samples) != 2 || !strings.Contains(stdout.String(), "h1-c50") {
		t.Errorf("%d rounds, %d samples, %s", r.Settings.Rounds, len(r.Samples), &stdout)
	}
	if !strings.Contains(progress.said.String(), "interrupted") {
		t.Errorf("it says %s", &progress.said)
	}
	if out, err := exec.Command("pgrep", "-f", bin).Output(); err == nil {
		t.Errorf("left behind: %s", out)
	}
}

// watched does something when a text has been written.
type watched struct {
	said  bytes.Buffer
	until string
	then  func()
}

func (w *watched) Write(b []byte) (int, error) {
	if strings.Contains(string(b), w.until) {
		w.then()
	}
	return w.said.Write(b)
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"--rounds", "0"}, {"--workloads", "h3"}, {"--peers", "envoy"}, {"--nonsense"}, {"more"}, {"--sample", "1ms"}} {
		var o, e bytes.Buffer
		if code := run(t.Context(), args, &o, &e); code != exitUsage || e.Len() == 0 {
			t.Errorf("%v: exit status %d, %s", args, code, &e)
		}
	}
	var o, e bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, &o, &e); code != exitOK || !strings.Contains(o.String(), "h2-c10-m10") || !strings.Contains(o.String(), "conduit-mesh") {
		t.Errorf("help: %d %s %s", code, &o, &e)
	}
	if code := run(t.Context(), []string{"--bin", t.TempDir(), "--peers", "conduit"}, &o, &e); code != exitError || !strings.Contains(e.String(), "make bench-tools") {
		t.Errorf("without programs: %d %s", code, &e)
	}
}

func TestJudge(t *testing.T) {
	r := &report.Run{Goals: []report.Goal{{Subject: "a", Limit: 100, Ceiling: 125}, {Subject: "b", Limit: 200, Ceiling: 125}}}
	r.Goals[0].Value.N, r.Goals[0].Value.Median = 1, 124
	r.Goals[1].Value.N, r.Goals[1].Value.Median = 1, 126
	if err := judge(r); err == nil || strings.Contains(err.Error(), "a:") || !strings.Contains(err.Error(), "b:") {
		t.Errorf("error %v", err)
	}
	r = &report.Run{Memory: []report.Memory{{Peer: "conduit", Error: "lost"}}}
	if err := judge(r); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("error %v", err)
	}
}
