package e2e

import (
	"fmt"
	"os"
	"testing"

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
	var err error
	if binDir, err = kubetest.BuildConduit("e2e-1"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	opts := kubetest.Options("e2e")
	opts.Binds = []machine.Bind{{Host: binDir, Inside: nodeBin}}
	return kubetest.Main(m, opts)
}
