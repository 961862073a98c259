package proxylink

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// openCgroup is where the proxy has to start for the programs of dir to see its sockets, which they need to show
// applications their true clients: nil when the agent's own cgroup, which a child inherits, is dir or below it.
func openCgroup(dir string) (*os.File, error) {
	if dir == "" {
		return nil, nil
	}
	in, err := within(dir, os.Getpid())
	if err != nil || in {
		return nil, err
	}
	return os.Open(dir)
}

// within reports whether a process is in the cgroup2 directory dir or in one below it.
func within(dir string, pid int) (bool, error) {
	var self, above unix.Stat_t
	if err := unix.Stat(dir, &self); err != nil {
		return false, fmt.Errorf("stat cgroup %s: %w", dir, err)
	}
	if err := unix.Stat(filepath.Join(dir, ".."), &above); err == nil && above.Dev != self.Dev {
		return true, nil // the root of the mount has every process below it
	}
	want, found := strconv.Itoa(pid), false
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // a cgroup that went away meanwhile
		}
		procs, _ := os.ReadFile(filepath.Join(path, "cgroup.procs")) // unreadable in a threaded cgroup
		if slices.Contains(strings.Fields(string(procs)), want) {
			found = true
			return fs.SkipAll
		}
		return nil
	})
	return found, err
}

// place makes a child start in the cgroup; nil leaves it in the agent's.
func place(attr *syscall.SysProcAttr, cgroup *os.File) {
	if cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(cgroup.Fd())
	}
}

// explain adds what to do when a cgroup takes no processes.
func explain(err error, cgroup *os.File) error {
	if cgroup != nil && (errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EOPNOTSUPP)) {
		return fmt.Errorf("%w (cgroup %s takes no processes because its children have controllers: start the agent in a cgroup below it)",
			err, cgroup.Name())
	}
	return err
}
