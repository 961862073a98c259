package kubetest

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"conduit.io/conduit/tests/cluster/kube"
)

// Options are those of a cluster that is called name, unless the environment says otherwise: E2E_NAME, E2E_CNI (bridge, ptp), E2E_PROXY
// (iptables, nftables), E2E_DUAL (not empty: IPv6, too).
func Options(name string) kube.Options {
	return kube.Options{Name: cmp.Or(os.Getenv("E2E_NAME"), name), CNI: os.Getenv("E2E_CNI"), ProxyMode: os.Getenv("E2E_PROXY"), DualStack: os.Getenv("E2E_DUAL") != ""}
}

// BuildConduit builds all binaries of Conduit, as of a version, and returns the directory that they are in: bin/e2e/VERSION of the
// repository, where nothing is linked again that has not changed. Processes that build the same version wait for each other.
func BuildConduit(version string) (dir string, err error) {
	root, err := kube.Root(context.Background())
	if err != nil {
		return "", err
	}
	dir = filepath.Join(root, "bin", "e2e", version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := kube.Lock(dir + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X conduit.io/conduit/mesh.version="+version, "-o", dir+string(filepath.Separator), "conduit.io/conduit/cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build Conduit: %w\n%s", err, out)
	}
	return dir, nil
}

// ImportConduit makes images of the binaries in a directory, and imports them on every node.
func (c *Cluster) ImportConduit(bin, version string) {
	c.t.Helper()
	out := c.t.TempDir()
	build := exec.CommandContext(c.Context(), "go", "run", "conduit.io/conduit/deploy/images", "-bin", bin, "-out", out, "-version", version)
	if said, err := build.CombinedOutput(); err != nil {
		c.t.Fatalf("%v\n%s", err, said)
	}
	for _, name := range []string{"conduit-controller", "conduit-agent", "conduit-proxy"} {
		if err := c.ImportImage(c.Context(), out+"/"+name+".tar"); err != nil {
			c.t.Fatal(err)
		}
	}
}

// Conduit runs the command line of Conduit, the one in a directory, on the cluster, and returns what it said.
func (c *Cluster) Conduit(bin string, args ...string) (string, error) {
	said, err := exec.CommandContext(c.Context(), filepath.Join(bin, "conduit"), append(args, "--kubeconfig", c.Kubeconfig())...).CombinedOutput()
	return string(said), err
}
