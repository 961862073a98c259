package e2e

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"conduit.io/conduit/tests/cluster/kube"
	"conduit.io/conduit/tests/cluster/kubetest"
	"conduit.io/conduit/tests/cluster/machine"
)

// nodeBin is where nodes see Conduit's binaries.
const nodeBin = "/opt/conduit/bin"

// binDir has Conduit's binaries on the host.
var binDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Getenv(kubetest.Env) == "" {
		return m.Run() // every test skips, and says why
	}
	dir, err := os.MkdirTemp("", "conduit-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binDir = dir
	build := exec.Command("go", "build", "-trimpath", "-o", dir+string(filepath.Separator), "conduit.io/conduit/cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build Conduit: %v\n%s", err, out)
		return 1
	}
	return kubetest.Main(m, kube.Options{Name: cmp.Or(os.Getenv("E2E_NAME"), "e2e"), CNI: os.Getenv("E2E_CNI"), ProxyMode: os.Getenv("E2E_PROXY"),
		Binds: []machine.Bind{{Host: dir, Inside: nodeBin}}})
}
