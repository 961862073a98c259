package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/apiserver"
	"conduit.io/conduit/tests/program"
)

var controllerDir string

func TestMain(m *testing.M) {
	os.Exit(program.Main(func(dir string) int {
		controllerDir = dir
		return m.Run()
	}, "conduit.io/conduit/cmd/conduit-controller"))
}

// TestTenNodes is the measurement at its smallest. What is counted must be right; how long it takes is not looked at.
func TestTenNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: takes most of a minute")
	}
	p, err := measure(t.Context(), plan{controller: filepath.Join(controllerDir, "conduit-controller"), writers: 8, rate: 20,
		change: 3 * time.Second, rest: time.Second, limit: 5 * time.Minute, progress: t.Output()}, 10)
	if errors.Is(err, apiserver.ErrMissing) {
		t.Skipf("SKIPPED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := p.faults(); err != nil {
		t.Error(err)
	}
	// 20 Services dialled, and one that declares a port of each own pod and each caller's; every agent holds these, at any size.
	if p.Held.Services != dialled+2*podsPerNode || p.Held.Workloads < dialled*podsPerService || p.Held.Workloads > dialled*podsPerService+2*podsPerNode {
		t.Errorf("an agent holds %d Services and %d workloads", p.Held.Services, p.Held.Workloads)
	}
	if p.Together.Snapshot.N != 9 || p.Herd.Served.N != 10 || p.Policy.Heard.N != 10 || p.Herd.Change.N == 0 {
		t.Errorf("measured too little: %+v", p)
	}
}

// TestFaults: what must not happen is found, at a point that is right but for one thing.
func TestFaults(t *testing.T) {
	good := func() *point {
		return &point{Nodes: 10, Pods: 500, Enrol: enrol{Conditions: 500, Writes: 510, Untainted: 10}, Change: change{Changes: 20, Heard: 80, IdleAgents: 3}}
	}
	if err := good().faults(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(p *point){
		"1 changes were not heard": func(p *point) { p.Change.Lost = 1 },
		"heard of 39 times only":   func(p *point) { p.Change.Heard = 39 },
		"were sent 7 bytes":        func(p *point) { p.Change.IdleBytes = 7 },
		"0 agents that dial":       func(p *point) { p.Change.IdleAgents = 0 },
		"there were 511 writes":    func(p *point) { p.Enrol.Writes = 511 },
		"499 of 500 pods":          func(p *point) { p.Enrol.Conditions = 499 },
		"9 taints":                 func(p *point) { p.Enrol.Untainted = 9 },
		"2 conditions were":        func(p *point) { p.Herd.Writes = 2 },
		"5 bytes a second":         func(p *point) { p.RestBytes = 5 },
	} {
		p := good()
		spoil(p)
		if err := p.faults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// TestTable: a page's table is replaced, and nothing else of it.
func TestTable(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	write := func(text string) {
		if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + tableBegin + "old\n" + tableEnd + "after\n")
	made := table([]*point{{Nodes: 10}, {Nodes: 100}})
	for line := range strings.Lines(made) {
		if strings.Count(line, "|") != 4 {
			t.Errorf("not three cells: %s", line)
		}
	}
	if err := rewrite(page, made); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(page); err != nil || string(text) != "before\n"+tableBegin+made+tableEnd+"after\n" {
		t.Errorf("got %q, %v", text, err)
	}
	write("no table")
	if err := rewrite(page, made); err == nil {
		t.Error("a page without a place for the table")
	}
}
