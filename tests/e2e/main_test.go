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
	if err := buildConduit(dir, "e2e-1"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return kubetest.Main(m, kube.Options{Name: cmp.Or(os.Getenv("E2E_NAME"), "e2e"), CNI: os.Getenv("E2E_CNI"), ProxyMode: os.Getenv("E2E_PROXY"), DualStack: os.Getenv("E2E_DUAL") != "",
		Binds: []machine.Bind{{Host: dir, Inside: nodeBin}}})
}

// buildConduit builds all binaries as of a version.
func buildConduit(dir, version string) error {
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-X conduit.io/conduit/mesh.version="+version, "-o", dir+string(filepath.Separator), "conduit.io/conduit/cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build Conduit: %w\n%s", err, out)
	}
	return nil
}
