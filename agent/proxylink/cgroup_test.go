package proxylink

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testCgroup is a new cgroup2 directory.
func testCgroup(t *testing.T) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(root, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir := filepath.Join(root, fmt.Sprintf("cdt-proxylink-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { removeCgroup(t, dir) })
		return dir
	}
	t.Skip("SKIPPED: needs cgroup2")
	return ""
}

// removeCgroup waits for the kernel to have taken dead processes out of it.
func removeCgroup(t *testing.T, dir string) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); ; <-tick.C {
		err := os.Remove(dir)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Error(err)
			return
		}
	}
}

// The data path sees only sockets of its cgroup, and the proxy's must be among them.
func TestProxyStartsInTheCgroupOfTheDataPath(t *testing.T) {
	binary := proxyBinary(t, "good")
	cgroup, dir := testCgroup(t), t.TempDir()
	pid, exited, err := start(binary, dir, cgroup)
	if err != nil {
		t.Fatal(err)
	}
	if in, err := within(cgroup, pid); err != nil || !in {
		t.Errorf("the proxy is in %s: %v, %v", cgroup, in, err)
	}
	if in, err := within(cgroup, os.Getpid()); err != nil || in {
		t.Errorf("the agent is in %s: %v, %v", cgroup, in, err)
	}
	if in, err := within(filepath.Dir(cgroup), os.Getpid()); err != nil || !in {
		t.Errorf("the agent is below %s: %v, %v", filepath.Dir(cgroup), in, err)
	}
	if err := Kill(dir, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	<-exited
	if _, _, err := start(binary, dir, filepath.Join(cgroup, "none")); err == nil {
		t.Error("a proxy started in a cgroup that is not there")
	}
}
