package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"conduit.io/conduit/tests/kernels/plan"
)

// suite is a package whose tests run in the guest as one static binary.
type suite struct {
	name  string
	pkg   string
	tests string // regexp of the tests that run; "" for all
	skip  string // regexp of those that do not
	mesh  bool   // needs the Conduit binaries and the CNI plugins
}

// suites are those that depend on the kernel. Of the last, which sends real traffic between the pods of labs, those tests run
// that need no other program and no great quantity: an emulated processor is many times slower. Left out is also what
// kills proxies in quick succession and is strict about time: a SYN that meets two deaths is sent again after three seconds.
var suites = []suite{
	{name: "loader", pkg: "./loader"},
	{name: "podnet", pkg: "./agent/podnet"},
	{name: "kubelet", pkg: "./agent/kubelet"},
	{name: "mesh", pkg: "./tests/netns", mesh: true, tests: "^(TestAgentStates|TestChain|TestChainVersions|TestDeath|" +
		"TestEnrolWhileTalking|TestGC|TestKubeletProbes|TestModeChangesApply|TestNoPlaintextBetweenNodes|TestNotEnrolled|TestNothingEscapes|" +
		"TestRepair|TestUninstall|TestUninstallStates|TestUnknownPod|TestWireEncrypted)$", skip: "TestDeath/proxies_killed_again"},
}

func suiteNames() (names []string) {
	for _, s := range suites {
		names = append(names, s.name)
	}
	return names
}

// choose is the suites of these names, and only the tests that match run, if it is not empty.
func choose(names []string, run string) ([]suite, error) {
	var chosen []suite
	for _, name := range names {
		found := false
		for _, s := range suites {
			if s.name != name {
				continue
			}
			if run != "" {
				s.tests = run
			}
			chosen, found = append(chosen, s), true
		}
		if !found {
			return nil, fmt.Errorf("there is no suite %q, only %s", name, strings.Join(suiteNames(), ", "))
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no suite was asked for: there are %s", strings.Join(suiteNames(), ", "))
	}
	return chosen, nil
}

var (
	meshPackages = []string{"./cmd/conduit-agent", "./cmd/conduit-proxy", "./cmd/conduit-cni"}
	cniPackages  = []string{
		"github.com/containernetworking/plugins/plugins/main/bridge",
		"github.com/containernetworking/plugins/plugins/main/ptp",
		"github.com/containernetworking/plugins/plugins/ipam/host-local",
	}
)

// tree is what is the same in every guest.
type tree struct {
	files []file
	runs  []plan.Run
}

// file is a program on this machine and its place in the guest.
type file struct{ from, to string }

// build compiles everything that the guest runs.
func build(ctx context.Context, dir string, chosen []suite) (*tree, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("find the module: run this from the source tree: %w", err)
	}
	b := builder{ctx: ctx, root: strings.TrimSpace(string(root)), dir: filepath.Join(dir, "bin"), tree: &tree{}}
	b.add(plan.Shell, "build", "./tests/kernels/init")
	mesh := false
	for _, s := range chosen {
		to := "/tests/" + s.name + ".test"
		b.add(to, "test", "-c", s.pkg)
		args := []string{to, "-test.v", "-test.timeout=15m"}
		if s.tests != "" {
			args = append(args, "-test.run="+s.tests)
		}
		if s.skip != "" {
			args = append(args, "-test.skip="+s.skip)
		}
		run := plan.Run{Name: s.name, Args: args}
		if s.mesh {
			run.Env = append(run.Env, "CONDUIT_BIN_DIR="+plan.BinDir)
			mesh = true
		}
		b.tree.runs = append(b.tree.runs, run)
	}
	if mesh {
		for _, pkg := range meshPackages {
			b.add(plan.BinDir+"/"+filepath.Base(pkg), "build", pkg)
		}
		for _, pkg := range cniPackages {
			b.add(plan.BinDir+"/cni/"+filepath.Base(pkg), "build", pkg)
		}
	}
	return b.tree, b.err
}

type builder struct {
	ctx       context.Context
	root, dir string
	tree      *tree
	err       error // the first one; nothing is built after it
}

// add compiles a package into the file `to` of the guest.
func (b *builder) add(to string, verb ...string) {
	if b.err != nil {
		return
	}
	out := filepath.Join(b.dir, to)
	pkg := verb[len(verb)-1]
	args := append(verb[:len(verb)-1:len(verb)-1], "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd := exec.CommandContext(b.ctx, "go", args...)
	cmd.Dir = b.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if text, err := cmd.CombinedOutput(); err != nil {
		b.err = fmt.Errorf("build %s: %w\n%s", pkg, err, text)
		return
	}
	b.tree.files = append(b.tree.files, file{out, to})
}
