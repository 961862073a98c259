package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"conduit.io/conduit/tests/bench/campaign"
	"conduit.io/conduit/tests/bench/peers"
	"conduit.io/conduit/tests/bench/report"
	"conduit.io/conduit/tests/bench/workload"
)

// worse is the ratio of CPU above which a change is a regression: when the whole interval lies above it.
const worse = 1.10

// regression compares the built proxy with another commit's, in pairs.
func regression(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	commit, err := buildBase(ctx, o)
	if err != nil {
		return err
	}
	b, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer b.rig.Close()
	plan := o.plan
	plan.Workloads = slices.DeleteFunc(slices.Clone(plan.Workloads), func(w *workload.Workload) bool { return w.Kind != workload.CPU })
	if len(plan.Workloads) == 0 {
		return usageError{errors.New("--against compares CPU, and none of the --workloads is about it")}
	}
	plan.Peers = slices.DeleteFunc(peers.Defs(), func(d *peers.Def) bool { return d.Name != peers.Conduit && d.Name != peers.ConduitMesh })
	plan.Peers = append(plan.Peers, peers.Base(commit)...)
	r := begin(o, b.rig)
	c := &campaign.Campaign{Plan: plan, Starter: b.starter, Tools: b.tools, Progress: stderr}
	if err := c.Start(ctx, r); err != nil {
		return err
	}
	if err := c.Run(ctx); err != nil {
		return err
	}
	if err := save(o, r, stderr); err != nil {
		return err
	}
	return compare(r, commit, stdout)
}

// buildBase builds the proxy of o.against beside our own, and returns which commit that is.
func buildBase(ctx context.Context, o *options) (string, error) {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "--verify", o.against+"^{commit}").Output()
	if err != nil {
		return "", usageError{fmt.Errorf("--against: %q is no commit", o.against)}
	}
	commit := strings.TrimSpace(string(out))
	bin, err := filepath.Abs(filepath.Join(o.bin, "bench", "base-proxy"))
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "conduit-bench-base-")
	if err != nil {
		return "", fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	tree := filepath.Join(dir, "tree")
	if err := quiet(exec.CommandContext(ctx, "git", "worktree", "add", "--detach", tree, commit)); err != nil {
		return "", err
	}
	// Not with ctx: what was added is removed, whatever ended us.
	defer func() { _ = quiet(exec.Command("git", "worktree", "remove", "--force", tree)) }()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./cmd/conduit-proxy")
	build.Dir, build.Env = tree, append(os.Environ(), "CGO_ENABLED=0")
	return commit, quiet(build)
}

// quiet runs a command; what it says is in its error.
func quiet(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// compare prints the ratios, and is an error when one is a regression or could not be measured.
func compare(r *report.Run, commit string, stdout io.Writer) error {
	t := report.Table{Title: "CPU of a request, to that at " + commit, Head: []string{"", "hops", "ratio (95 % interval)", ""}}
	var all error
	for _, pair := range [][3]string{{"1", peers.Conduit, "base"}, {"2, mTLS", peers.ConduitMesh, "base-mesh"}} {
		for _, w := range r.Workloads {
			hops, e := pair[0], r.CPURatio(w.Name, pair[1], pair[2])
			verdict := ""
			switch {
			case e.N == 0:
				verdict = "not measured"
				all = errors.Join(all, fmt.Errorf("%s, %s hops: no round in which both worked", w.Name, hops))
			case e.Low > worse:
				verdict = "regression"
				all = errors.Join(all, fmt.Errorf("%s, %s hops: CPU is %.2f times (%.2f to %.2f) that at %s", w.Name, hops, e.Median, e.Low, e.High, commit))
			case e.High < 1/worse:
				verdict = "better"
			}
			t.Rows = append(t.Rows, []string{w.Name, hops, fmt.Sprintf("%.3f (%.3f to %.3f)", e.Median, e.Low, e.High), verdict})
		}
	}
	if err := t.Text(stdout); err != nil {
		return err
	}
	return all
}
