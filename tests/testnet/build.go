package testnet

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/program"
)

// BinDirEnv names the environment variable with a directory of ready binaries: conduit-agent, conduit-proxy and
// conduit-cni in it, the CNI plugins in cni/ below it. Without it tests build their own, once per
// package.
const BinDirEnv = "CONDUIT_BIN_DIR"

// Binaries are directories with the programs that tests start.
type Binaries struct {
	Conduit string // conduit-agent, conduit-proxy, conduit-cni; empty if the test did not ask for them
	CNI     string // bridge, ptp, host-local
}

var (
	cniPackages = []string{
		"github.com/containernetworking/plugins/plugins/main/bridge",
		"github.com/containernetworking/plugins/plugins/main/ptp",
		"github.com/containernetworking/plugins/plugins/ipam/host-local",
	}
	conduitPackages = []string{
		"conduit.io/conduit/cmd/conduit-agent",
		"conduit.io/conduit/cmd/conduit-proxy",
		"conduit.io/conduit/cmd/conduit-cni",
	}
)

// built is the directory of what this process has built; Main makes and removes it.
var built struct {
	dir                string
	cni, conduit, tool sync.Once
	cniErr, cErr, tErr error
}

// Main runs a package's tests and removes what they built. Before, it removes what earlier test processes left that
// were killed (a timeout of go test runs no clean-up). TestMain passes its result to os.Exit.
func Main(m *testing.M) int {
	flag.Parse()
	if err := sweep(); err != nil {
		fmt.Fprintln(os.Stderr, "remove what killed tests left:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "conduit-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a directory for test binaries:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	built.dir = dir
	return m.Run()
}

// sweep removes the labs of test processes that are gone.
func sweep() error {
	if os.Geteuid() != 0 {
		return nil
	}
	var errs []error
	for _, parent := range []string{os.TempDir(), inMemory} {
		dirs, err := filepath.Glob(filepath.Join(parent, namePrefix+"[0-9a-f]*", "owner"))
		errs = append(errs, err)
		for _, owner := range dirs {
			dir := filepath.Dir(owner)
			if !lab.Alive(dir) {
				errs = append(errs, lab.Sweep(filepath.Base(dir), dir, lab.DefaultBPFFS))
			}
		}
	}
	return errors.Join(errs...)
}

// Build returns the binaries, building them if BinDirEnv is not set. It fails t if they do not build.
func Build(t testing.TB, conduit bool) Binaries {
	t.Helper()
	if dir := os.Getenv(BinDirEnv); dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			t.Fatal(err)
		}
		return checkBinaries(t, Binaries{Conduit: abs, CNI: filepath.Join(abs, "cni")}, conduit)
	}
	needDir(t)
	b := Binaries{CNI: filepath.Join(built.dir, "cni")}
	built.cni.Do(func() { built.cniErr = program.Build(b.CNI, cniPackages...) })
	err := built.cniErr
	if conduit && err == nil {
		b.Conduit = filepath.Join(built.dir, "conduit")
		built.conduit.Do(func() { built.cErr = program.Build(b.Conduit, conduitPackages...) })
		err = built.cErr
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// CNITool builds the CNI project's command-line runtime, and returns its path.
func CNITool(t testing.TB) string {
	t.Helper()
	needDir(t)
	dir := filepath.Join(built.dir, "tool")
	built.tool.Do(func() { built.tErr = program.Build(dir, "github.com/containernetworking/cni/cnitool") })
	if built.tErr != nil {
		t.Fatal(built.tErr)
	}
	return filepath.Join(dir, "cnitool")
}

func needDir(t testing.TB) {
	t.Helper()
	if built.dir == "" {
		t.Fatalf("testnet: TestMain does not call testnet.Main (or set %s, for ready binaries)", BinDirEnv)
	}
}

func checkBinaries(t testing.TB, b Binaries, conduit bool) Binaries {
	t.Helper()
	want := []string{filepath.Join(b.CNI, "bridge")}
	if conduit {
		want = append(want, filepath.Join(b.Conduit, "conduit-agent"))
	}
	for _, file := range want {
		if _, err := os.Stat(file); err != nil {
			t.Fatalf("%s is set, but: %v (run `make build`, or unset it)", BinDirEnv, err)
		}
	}
	return b
}
