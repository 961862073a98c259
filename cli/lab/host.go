package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultBPFFS is where bpffs is mounted by convention.
const DefaultBPFFS = "/sys/fs/bpf"

// ErrNoCgroup2 is returned on a machine without a mounted cgroup2 hierarchy.
var ErrNoCgroup2 = errors.New("no cgroup2 hierarchy is mounted (mount one: mount -t cgroup2 none /sys/fs/cgroup/unified)")

// CgroupRoot finds the root of the mounted cgroup2 hierarchy, on unified and on hybrid machines alike.
func CgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	defer f.Close()
	path, err := findMount(f, "cgroup2")
	if err == nil && path == "" {
		err = ErrNoCgroup2
	}
	return path, err
}

// findMount returns the mount point of the first whole mount (root "/") of a file system type, or "".
// The format is proc_pid_mountinfo(5): ID parent major:minor root mount-point options [tags...] - type source options.
func findMount(r io.Reader, fstype string) (string, error) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		fields, tail := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 6 || len(tail) < 1 || tail[0] != fstype || fields[3] != "/" {
			continue
		}
		return unescapeMount.Replace(fields[4]), nil
	}
	if err := sc.Err(); err != nil {
		return "", fmt.Errorf("read mountinfo: %w", err)
	}
	return "", nil
}

// unescapeMount undoes the octal escapes of mountinfo.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// EnsureBPFFS mounts bpffs at path if none is there, and reports whether it did. The mount is left in place: other
// programs may have begun to use it.
func EnsureBPFFS(path string) (mounted bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err == nil && st.Type == unix.BPF_FS_MAGIC {
		return false, nil
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return false, fmt.Errorf("mount bpffs: %w", err)
	}
	if err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=0700"); err != nil {
		return false, fmt.Errorf("mount bpffs at %s: %w", path, err)
	}
	return true, nil
}
