package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"conduit.io/conduit/tests/bench/report"
)

// pairs makes a run in which Conduit takes ratio times what the base takes; the noise of a round is common to both.
func pairs(ratio float64) *report.Run {
	r := &report.Run{Settings: report.Settings{Rounds: 10}, Workloads: []report.Workload{{Name: "w", Kind: "cpu"}}}
	for round := range 10 {
		base := 0.010 * float64(1+round%3)
		for peer, cpu := range map[string]float64{
			"base": base, "conduit": base * ratio * (1 + float64(round%4)/100), "base-mesh": base, "conduit-mesh": base,
		} {
			r.Samples = append(r.Samples, report.Sample{Workload: "w", Peer: peer, Round: round, Completed: 1000, Seconds: 1, CPU: cpu})
		}
	}
	return r
}

func TestCompare(t *testing.T) {
	for _, tc := range []struct {
		ratio   float64
		verdict string
		fails   bool
	}{{1.0, "", false}, {1.08, "", false}, {1.2, "regression", true}, {0.8, "better", false}} {
		var out bytes.Buffer
		err := compare(pairs(tc.ratio), "abc", &out)
		if (err != nil) != tc.fails || !strings.Contains(out.String(), tc.verdict) {
			t.Errorf("%v: error %v\n%s", tc.ratio, err, &out)
		}
		if err != nil && (!strings.Contains(err.Error(), "w, 1 hops") || strings.Contains(err.Error(), "mTLS")) {
			t.Errorf("%v: error %v", tc.ratio, err)
		}
	}
	r := pairs(1)
	for i := range r.Samples {
		r.Samples[i].Failed = 1
	}
	if err := compare(r, "abc", &bytes.Buffer{}); err == nil {
		t.Error("nothing was measured, and that is fine")
	}
}

// Another commit's proxy is built beside ours, and its worktree is gone afterwards.
func TestBuildBase(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the proxy")
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	if err := os.Mkdir(filepath.Join(dir, "bench"), 0o755); err != nil {
		t.Fatal(err)
	}
	commit, err := buildBase(t.Context(), &options{bin: dir, against: "HEAD"})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(dir, "bench", "base-proxy"), "--version").Output(); err != nil || !strings.Contains(string(out), "conduit-proxy") {
		t.Errorf("the base says %q, %v", out, err)
	}
	trees, err := exec.Command("git", "worktree", "list").Output()
	if err != nil || strings.Contains(string(trees), dir) || commit == "" {
		t.Errorf("commit %q, worktrees, %v:\n%s", commit, err, trees)
	}
}

func TestAgainstNoCommit(t *testing.T) {
	var o, e bytes.Buffer
	if code := run(t.Context(), []string{"--bin", bin, "--against", "no-such-commit"}, &o, &e); code != exitUsage || !strings.Contains(e.String(), "no-such-commit") {
		t.Errorf("exit status %d, %s", code, &e)
	}
}
