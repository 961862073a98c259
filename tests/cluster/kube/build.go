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

// own are the programs of this repository's module that a cluster needs, by their places in the cache.
var own = map[string]string{
	"initd":          "conduit.io/conduit/tests/cluster/initd",
	"pause":          "conduit.io/conduit/tests/cluster/pause",
	"cni/bridge":     "github.com/containernetworking/plugins/plugins/main/bridge",
	"cni/ptp":        "github.com/containernetworking/plugins/plugins/main/ptp",
	"cni/loopback":   "github.com/containernetworking/plugins/plugins/main/loopback",
	"cni/host-local": "github.com/containernetworking/plugins/plugins/ipam/host-local",
	"cni/portmap":    "github.com/containernetworking/plugins/plugins/meta/portmap",
}

// Binaries are the directories of what a cluster runs.
type Binaries struct {
	Kubernetes string // the programs of Kubernetes
	CoreDNS    string // coredns
	Own        string // initd, pause, and the CNI plugins in cni/
}

// Build builds what is not in the cache yet: about seven minutes on two cores when nothing is, a second otherwise.
// Processes that build at the same time wait for each other.
func Build(ctx context.Context, progress io.Writer) (Binaries, error) {
	root, err := moduleRoot(ctx)
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
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return b, err
	}
	defer unlock()
	version := "k8s.io/component-base/version.git"
	flags := fmt.Sprintf("-s -w -X %sVersion=v%s -X %sMajor=1 -X %sMinor=%s", version, Version, version, version, strings.Split(Version, ".")[1])
	for _, name := range kubernetesPrograms {
		if err := buildOnce(ctx, progress, filepath.Join(root, kubernetesModule), flags, "k8s.io/kubernetes/cmd/"+name, filepath.Join(b.Kubernetes, name)); err != nil {
			return b, err
		}
	}
	if err := buildOnce(ctx, progress, filepath.Join(root, corednsModule), "-s -w", ".", filepath.Join(b.CoreDNS, "coredns")); err != nil {
		return b, err
	}
	for place, pkg := range own { // go build sees by itself that nothing has changed
		if err := goBuild(ctx, root, "-s -w", pkg, filepath.Join(b.Own, place)); err != nil {
			return b, err
		}
	}
	return b, nil
}

func buildOnce(ctx context.Context, progress io.Writer, dir, flags, pkg, out string) error {
	if _, err := os.Stat(out); err == nil {
		return nil
	}
	fmt.Fprintf(progress, "building %s %s\n", filepath.Base(out), filepath.Base(filepath.Dir(out)))
	if err := goBuild(ctx, dir, flags, pkg, out+".new"); err != nil {
		return err
	}
	return os.Rename(out+".new", out)
}

func goBuild(ctx context.Context, dir, flags, pkg, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", flags, "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, said)
	}
	return nil
}

// moduleRoot is the directory of this repository: tests run below it.
func moduleRoot(ctx context.Context) (string, error) {
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

// lock waits for a file's lock; the kernel gives it back when this process dies.
func lock(file string) (unlock func(), err error) {
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
