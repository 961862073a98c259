package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupFS is where cgroups are mounted, on the host and inside: version 2 itself, or a tmpfs of version 1 hierarchies
// with version 2 beside them.
const cgroupFS = "/sys/fs/cgroup"

// systemGroup holds the init and the daemons. The machine's own root holds no process, as version 2 wants of a
// group whose children have controllers.
const systemGroup = "system"

// hierarchy is one mounted cgroup hierarchy.
type hierarchy struct {
	dir     string // mount point on the host
	fstype  string // "cgroup" or "cgroup2"
	options string // with which it is mounted again inside
}

// hierarchies lists what is mounted at and below cgroupFS.
func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	defer f.Close()
	var list []hierarchy
	for sc := bufio.NewScanner(f); sc.Scan(); {
		m := strings.Fields(sc.Text()) // device, mount point, type, options
		if len(m) < 4 || !strings.HasPrefix(m[2], "cgroup") || m[1] != cgroupFS && filepath.Dir(m[1]) != cgroupFS {
			continue
		}
		list = append(list, hierarchy{dir: m[1], fstype: m[2], options: ownOptions(m[2], m[3])})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted at %s", cgroupFS)
	}
	return list, nil
}

// ownOptions leaves of a mount's options those that name a version 1 hierarchy.
func ownOptions(fstype, options string) string {
	if fstype == "cgroup2" {
		return ""
	}
	general := []string{"rw", "ro", "relatime", "nosuid", "nodev", "noexec", "seclabel"}
	own := slices.DeleteFunc(strings.Split(options, ","), func(o string) bool {
		return slices.Contains(general, o) || strings.HasPrefix(o, "release_agent=")
	})
	if slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(o, "name=") }) {
		own = append(own, "none")
	}
	return strings.Join(own, ",")
}

// makeGroup makes a machine's cgroup in every hierarchy.
func makeGroup(group string) error {
	list, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range list {
		dir := h.dir
		for _, part := range strings.Split(group, "/") {
			if err := prepareChildren(h, dir); err != nil {
				return err
			}
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if err := inheritCPUSet(dir); err != nil {
				return err
			}
		}
		if err := prepareChildren(h, dir); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(dir, systemGroup), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if err := inheritCPUSet(filepath.Join(dir, systemGroup)); err != nil {
			return err
		}
	}
	return nil
}

// prepareChildren lets the children of a version 2 group have all the controllers that it has itself. Beside version 1
// hierarchies, version 2 has none that matter.
func prepareChildren(h hierarchy, dir string) error {
	if h.fstype != "cgroup2" || h.dir != cgroupFS {
		return nil
	}
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	for _, c := range strings.Fields(string(have)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("pass the %s controller on to cgroups below %s: %w", c, dir, err)
		}
	}
	return nil
}

// inheritCPUSet gives a new version 1 cpuset group its parent's CPUs and memory nodes: it begins with none, and no
// process could enter.
func inheritCPUSet(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read cpuset: %w", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.subtree_control")); err == nil {
			continue // version 2: empty means the parent's
		}
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
			return fmt.Errorf("write cpuset: %w", err)
		}
	}
	return nil
}

// joinGroup moves this process into a group, relative to what is mounted at cgroupFS, in every hierarchy.
func joinGroup(group string) error {
	list, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range list {
		if err := os.WriteFile(filepath.Join(h.dir, group, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

// removeGroup removes a machine's cgroups, and those above that have become empty. No process may be left in them.
func removeGroup(group string) error {
	list, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range list {
		errs = append(errs, removeTree(filepath.Join(h.dir, group)))
		for up := filepath.Dir(group); up != "."; up = filepath.Dir(up) {
			os.Remove(filepath.Join(h.dir, up)) // refused while another machine's group is in it
		}
	}
	return errors.Join(errs...)
}

// removeTree removes a cgroup and those below. A group is busy for a moment after its last process has died.
func removeTree(dir string) error {
	deadline := time.Now().Add(stopTimeout)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := removeTreeOnce(dir)
		if err == nil || !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		<-tick.C
	}
}

func removeTreeOnce(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list cgroups: %w", err)
	}
	for _, d := range slices.Backward(dirs) {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove cgroup %s: %w", d, err)
		}
	}
	return nil
}

// mountCgroups mounts inside root what is mounted on the host, with the machine's group for a root. The caller is in
// the cgroup namespace of the machine.
func mountCgroups(root string) error {
	list, err := hierarchies()
	if err != nil {
		return err
	}
	base := filepath.Join(root, cgroupFS)
	if list[0].dir != cgroupFS {
		if err := mount("tmpfs", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
			return err
		}
	}
	for _, h := range list {
		if err := mount("cgroup", filepath.Join(root, h.dir), h.fstype, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.options); err != nil {
			return err
		}
	}
	return copyLinks(cgroupFS, base)
}

// copyLinks copies symbolic links such as cpu -> cpu,cpuacct.
func copyLinks(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		target, err := os.Readlink(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		if err := os.Symlink(target, filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
