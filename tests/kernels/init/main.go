// Command init is the first process of a kernel that is booted to be tested. It mounts what Conduit needs, loads the
// modules, runs the test binaries of the plan with their output on the console, and powers the machine off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"conduit.io/conduit/tests/kernels/plan"
)

// work is the argument of the process that does the work, while the first process collects the dead.
const work = "work"

func main() {
	if len(os.Args) > 1 && os.Args[1] == work {
		if err := run(); err != nil {
			say(plan.Broken, err)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this program is the first process of a virtual machine; run `make kernels`")
		os.Exit(2)
	}
	if err := first(); err != nil {
		say(plan.Broken, err)
	} else {
		say(plan.Done)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func say(word string, args ...any) {
	fmt.Println(strings.TrimSpace(plan.Mark + word + " " + fmt.Sprintln(args...)))
}

// first starts the worker, and waits for every process that loses its parent, as a test expects of the first process:
// a dead proxy must not stay as a zombie.
func first() error {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err := mount(); err != nil {
		return err
	}
	worker, err := os.StartProcess(plan.Shell, []string{plan.Shell, work}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Env: []string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp"},
	})
	if err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case pid == worker.Pid && status != 0:
			return fmt.Errorf("the worker ended with %#x", status)
		case pid == worker.Pid:
			return nil
		}
	}
}

// mount lays out the file systems, cgroup2 and bpffs among them, and opens the console.
func mount() error {
	for _, m := range []struct{ dir, fstype string }{
		{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/tmp", "tmpfs"}, {"/run", "tmpfs"},
		{"/sys/fs/cgroup", "cgroup2"}, {"/sys/fs/bpf", "bpf"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.dir, m.fstype, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := os.Chmod("/tmp", 0o1777); err != nil {
		return err
	}
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(console.Fd()), fd, 0); err != nil {
			return fmt.Errorf("open the console: %w", err)
		}
	}
	return nil
}

func run() error {
	var p plan.Plan
	b, err := os.ReadFile(plan.File)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	say(plan.Booted, unix.ByteSliceToString(u.Release[:]))
	if err := loopback(); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	for _, m := range p.Modules {
		if err := load(m); err != nil {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	before, err := taint()
	if err != nil {
		return err
	}
	for _, r := range p.Runs {
		say(plan.Began, r.Name)
		if err := start(r); err != nil {
			say(plan.Failed, r.Name, err)
			continue
		}
		say(plan.Passed, r.Name)
	}
	return complaints(before)
}

func start(r plan.Run) error {
	cmd := exec.Command(r.Args[0], r.Args[1:]...)
	cmd.Dir = "/tmp"
	cmd.Env = append(os.Environ(), r.Env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// Bits of /proc/sys/kernel/tainted (Documentation/admin-guide/tainted-kernels.rst) that say that the kernel itself
// found a fault: an oops, or a warning.
const faults = 1<<7 | 1<<9

func taint() (uint64, error) {
	b, err := os.ReadFile("/proc/sys/kernel/tainted")
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

// complaints is an error if the kernel has found a fault in itself since before.
func complaints(before uint64) error {
	now, err := taint()
	if err != nil || now&^before&faults == 0 {
		return err
	}
	log := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, log)
	if err != nil {
		return fmt.Errorf("the kernel is tainted (%#x); its log cannot be read: %w", now, err)
	}
	fmt.Println(string(log[max(0, n-16<<10):n]))
	return fmt.Errorf("the kernel warned of a fault in itself (tainted %#x): its log is above", now)
}
