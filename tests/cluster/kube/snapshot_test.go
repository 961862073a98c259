package kube_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// snapshot is what a cluster must not leave on the host: mounts, links, cgroups, network namespaces, processes of a
// cluster, BPF pins, sysctls, and its directory.
func snapshot(t *testing.T) []string {
	t.Helper()
	var all []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 4 {
			all = append(all, "mount "+f[4])
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		all = append(all, "link "+l.Attrs().Name)
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/bpf", "/run/netns", "/var/tmp/conduit-cluster", "/etc/cni", "/opt/cni", "/var/lib/kubelet", "/var/lib/containerd", "/run/containerd"} {
		all = append(all, below(t, root)...)
	}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "net/ipv4/ip_forward"} {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, "sysctl "+name+" "+strings.TrimSpace(string(value)))
	}
	slices.Sort(all)
	return all
}

// below lists the directories and links below root that nobody else makes: not tests of other packages, and not what looks after
// the processes of this computer.
func below(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil
			}
			return err
		}
		base := filepath.Base(path)
		if strings.HasPrefix(base, "ct") || strings.HasPrefix(base, "conduit-machine-test") || base == ".lock" || base == "process_api" {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || root != "/sys/fs/cgroup" {
			all = append(all, "file "+path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func wantSame(t *testing.T, before, after []string) {
	t.Helper()
	for _, a := range after {
		if !slices.Contains(before, a) {
			t.Errorf("left on the host: %s", a)
		}
	}
	for _, b := range before {
		if !slices.Contains(after, b) {
			t.Errorf("taken from the host: %s", b)
		}
	}
}

// namespaces are the network namespaces of all processes.
func namespaces(t *testing.T) map[string]bool {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil {
			all[ns] = true
		}
	}
	return all
}
