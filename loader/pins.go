package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"conduit.io/conduit/api/kernel"

	"golang.org/x/sys/unix"
)

const (
	bpffsRoot          = "/sys/fs/bpf"
	mapsPrefix         = "maps-v"
	hooksDir           = "hooks"
	lookupsDir         = "lookups"
	defaultLockTimeout = 5 * time.Second
	lockPoll           = 20 * time.Millisecond
)

// pins is a pin directory.
type pins string

func (p pins) maps() string { return filepath.Join(string(p), mapsPrefix+strconv.Itoa(kernel.Schema)) }

func (p pins) hooks() string { return filepath.Join(string(p), hooksDir) }

func (p pins) hook(program string) string { return filepath.Join(p.hooks(), program) }

func (p pins) lookups() string { return filepath.Join(string(p), lookupsDir) }

func (p pins) lookup(cookie uint64) string {
	return filepath.Join(p.lookups(), strconv.FormatUint(cookie, 10))
}

// open makes the directory where needed and locks it. fresh reports that nothing was pinned there.
func (p pins) open(timeout time.Duration) (lock *os.File, fresh bool, err error) {
	if !filepath.IsAbs(string(p)) {
		return nil, false, fmt.Errorf("pin directory %q: want an absolute path on a bpffs, for example %s/conduit", string(p), bpffsRoot)
	}
	if err := ensureBPFFS(string(p)); err != nil {
		return nil, false, err
	}
	if lock, err = p.acquire(timeout, true); err != nil {
		return nil, false, err
	}
	fresh, err = p.prepare()
	if err != nil {
		lock.Close()
		return nil, false, err
	}
	return lock, fresh, nil
}

// prepare makes the sub-directories, and refuses pins of another layout.
func (p pins) prepare() (fresh bool, err error) {
	entries, err := os.ReadDir(string(p))
	if err != nil {
		return false, fmt.Errorf("read pin directory: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, mapsPrefix) && name != filepath.Base(p.maps()) {
			return false, fmt.Errorf("%w: %s holds %s, this version needs %s; %s",
				ErrIncompatible, string(p), name, filepath.Base(p.maps()), p.remedy())
		}
	}
	for _, dir := range []string{p.maps(), p.hooks(), p.lookups()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return false, fmt.Errorf("make pin directory: %w", err)
		}
	}
	return len(entries) == 0, nil
}

// acquire takes the lock: flock on the directory itself, since a bpffs has no ordinary files. It lasts until the file is
// closed, or the process ends. With create the directory is made when it is missing; without, that is fs.ErrNotExist.
func (p pins) acquire(timeout time.Duration, create bool) (*os.File, error) {
	if timeout == 0 {
		timeout = defaultLockTimeout
	}
	for deadline := time.Now().Add(timeout); ; time.Sleep(lockPoll) {
		if create {
			if err := os.MkdirAll(string(p), 0o700); err != nil {
				return nil, fmt.Errorf("make pin directory: %w", err)
			}
		}
		f, err := os.Open(string(p))
		if err != nil {
			return nil, fmt.Errorf("open pin directory: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && p.is(f) {
			return f, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock pin directory %s: %w", string(p), err)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%w: another process still held %s after %v: stop the other conduit-agent, or give this one another --bpffs",
				ErrLocked, string(p), timeout)
		}
	}
}

// is reports whether f is what the path names now: Remove may have deleted the directory while we waited.
func (p pins) is(f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(string(p))
	return err == nil && os.SameFile(a, b)
}

// ensureBPFFS makes sure that path will be on a bpffs: a missing mount of /sys/fs/bpf is made, as bpftool does.
func ensureBPFFS(path string) error {
	ok, err := onBPFFS(path)
	if err != nil || ok {
		return err
	}
	if path != bpffsRoot && !strings.HasPrefix(path, bpffsRoot+"/") {
		return fmt.Errorf("%s is not on a bpffs: use a directory below %s, or run 'mount -t bpf bpf DIR' and use one below DIR", path, bpffsRoot)
	}
	// Two agents may start at once, and the second mount would hide the first: lock what is underneath.
	f, err := os.Open(bpffsRoot)
	if err != nil {
		return fmt.Errorf("open %s: %w: the kernel needs CONFIG_BPF_SYSCALL, and sysfs mounted", bpffsRoot, err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", bpffsRoot, err)
	}
	if ok, err = onBPFFS(path); err != nil || ok {
		return err
	}
	if err := unix.Mount("bpf", bpffsRoot, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w: run 'mount -t bpf bpf %s' as root", bpffsRoot, err, bpffsRoot)
	}
	return nil
}

// onBPFFS asks the nearest directory that exists.
func onBPFFS(path string) (bool, error) {
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return st.Type == unix.BPF_FS_MAGIC, nil
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			return false, fmt.Errorf("statfs %s: %w", dir, err)
		}
	}
}

// checkCgroup makes sure that path is a cgroup2 directory.
func checkCgroup(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("cgroup %s: %w: give the mount point of cgroup2 (see 'findmnt -t cgroup2')", path, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("cgroup %s is not cgroup2: give its mount point (see 'findmnt -t cgroup2'; on hybrid hosts it is /sys/fs/cgroup/unified)", path)
	}
	return nil
}

// cgroupID is the number by which the kernel names a cgroup: its inode.
func cgroupID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat cgroup %s: %w", path, err)
	}
	return st.Ino, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
