package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Version is the Kubernetes version that clusters are built from; tests/cluster/kubernetes/go.mod pins it.
const Version = "1.36.3"

// CacheEnv names the environment variable with the directory of built binaries. The default is conduit-cluster in the user's
// cache directory.
const CacheEnv = "CONDUIT_CLUSTER_CACHE"

// Modules of their own, which pin what they build.
const (
	kubernetesModule = "tests/cluster/kubernetes"
	corednsModule    = "tests/cluster/coredns"
)

var kubernetesPrograms = []string{"kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"}

// own are the programs of this repository's module that a cluster needs, and plugins the CNI plugins on its nodes.
var (
	own     = []string{"conduit.io/conduit/tests/cluster/initd", "conduit.io/conduit/tests/cluster/pause"}
	plugins = []string{
		"github.com/containernetworking/plugins/plugins/main/bridge",
		"github.com/containernetworking/plugins/plugins/main/ptp",
		"github.com/containernetworking/plugins/plugins/main/loopback",
		"github.com/containernetworking/plugins/plugins/ipam/host-local",
		"github.com/containernetworking/plugins/plugins/meta/portmap",
	}
)

// Binaries are the directories of what a cluster runs.
type Binaries struct {
	Kubernetes string // the programs of Kubernetes
	CoreDNS    string // coredns
	Own        string // initd, pause, and the CNI plugins in cni/
}

// Build builds what is not in the cache yet: about seven minutes on two cores when nothing is, a second otherwise. Processes that
// build at the same time wait for each other.
func Build(ctx context.Context, progress io.Writer) (Binaries, error) {
	root, err := Root(ctx)
	if err != nil {
		return Binaries{}, err
	}
	cache, err := cacheDir()
	if err != nil {
		return Binaries{}, err
	}
	b := Binaries{Own: filepath.Join(cache, "own")}
	if b.Kubernetes, err = keyed(cache, "kubernetes-"+Version, filepath.Join(root, kubernetesModule)); err != nil {
		return b, err
	}
	if b.CoreDNS, err = keyed(cache, "coredns", filepath.Join(root, corednsModule)); err != nil {
		return b, err
	}
	for _, dir := range []string{b.Kubernetes, b.CoreDNS, filepath.Join(b.Own, "cni")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return b, fmt.Errorf("make cache: %w", err)
		}
	}
	unlock, err := Lock(filepath.Join(cache, "lock"))
	if err != nil {
		return b, err
	}
	defer unlock()
	version := "k8s.io/component-base/version.git"
	flags := fmt.Sprintf("-s -w -X %sVersion=v%s -X %sMajor=1 -X %sMinor=%s", version, Version, version, version, strings.Split(Version, ".")[1])
	programs := map[string]string{}
	for _, name := range kubernetesPrograms {
		programs[name] = "k8s.io/kubernetes/cmd/" + name
	}
	if err := buildOnce(ctx, progress, filepath.Join(root, kubernetesModule), flags, b.Kubernetes, programs); err != nil {
		return b, err
	}
	if err := buildOnce(ctx, progress, filepath.Join(root, corednsModule), "-s -w", b.CoreDNS, map[string]string{"coredns": "."}); err != nil {
		return b, err
	}
	// go build sees by itself that nothing has changed.
	if err := goBuild(ctx, root, "-s -w", b.Own, own...); err != nil {
		return b, err
	}
	return b, goBuild(ctx, root, "-s -w", filepath.Join(b.Own, "cni"), plugins...)
}

// buildOnce builds those of a module's programs, packages by their names, that are not in a directory yet: together, so that one is
// compiled while another is linked.
func buildOnce(ctx context.Context, progress io.Writer, module, flags, out string, programs map[string]string) error {
	var names, packages []string
	for _, name := range sortedKeys(programs) {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			names, packages = append(names, name), append(packages, programs[name])
		}
	}
	if len(names) == 0 {
		return nil
	}
	fmt.Fprintf(progress, "building %s for %s\n", strings.Join(names, ", "), filepath.Base(out))
	unfinished := filepath.Join(out, "new")
	if err := goBuild(ctx, module, flags, unfinished, packages...); err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(unfinished, name), filepath.Join(out, name)); err != nil {
			return err
		}
	}
	return os.Remove(unfinished)
}

// goBuild builds a module's packages into a directory. With -trimpath, as Conduit is built: what both import is compiled once.
func goBuild(ctx context.Context, module, flags, out string, packages ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-ldflags", flags, "-o", out + string(filepath.Separator)}, packages...)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", strings.Join(packages, " "), err, said)
	}
	return nil
}

// Root is the directory of this repository: tests run below it.
func Root(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "conduit.io/conduit")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the repository (run this inside it): %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

func cacheDir() (string, error) {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory (or set %s): %w", CacheEnv, err)
	}
	return filepath.Join(dir, "conduit-cluster"), nil
}

// keyed is the place in the cache for what a module builds, named also by a digest of what decides how that turns out.
func keyed(cache, name, module string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH)
	for _, file := range []string{"go.mod", "go.sum", "main.go"} {
		data, err := os.ReadFile(filepath.Join(module, file))
		if errors.Is(err, fs.ErrNotExist) && file == "main.go" {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read what the cluster is built from: %w", err)
		}
		h.Write(data)
	}
	return filepath.Join(cache, name+"-"+hex.EncodeToString(h.Sum(nil))[:12]), nil
}

// Lock waits for the lock of a file, which it makes; the kernel gives it back when this process dies.
func Lock(file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	return func() { f.Close() }, nil
}

// hostPrograms are what must be installed, and Debian's packages that have them.
var hostPrograms = map[string]string{
	"etcd": "etcd-server", "containerd": "containerd", "ctr": "containerd", "runc": "runc", "iptables": "iptables", "nft": "nftables",
	"nsenter": "util-linux", "mount": "mount", "conntrack": "conntrack",
}

func checkHost() error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root")
	}
	packages := map[string]bool{}
	for program, pkg := range hostPrograms {
		if _, err := exec.LookPath(program); err != nil {
			packages[pkg] = true
		}
	}
	if len(packages) == 0 {
		return nil
	}
	return fmt.Errorf("programs are missing: apt-get install --no-install-recommends %s (their servers need not run)", strings.Join(sortedKeys(packages), " "))
}
