package machine

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// File descriptors that Start passes on. The readiness pipe gets "ok", or what went wrong.
const (
	readyFD   = 3
	ownerFD   = 4 // its end of file means that the owner has died
	forwardFD = 5 // a listening socket of the host
)

// Arguments of the init's program.
const (
	argJoin = "join" // CONFIG-DIR: enter the cgroup and its namespace, then become run
	argRun  = "run"  // CONFIG-DIR: be the init
	argExec = "exec" // COMMAND...: enter the machine's cgroup and become COMMAND
)

// Init is the main function of the program that Start runs inside, and returns its exit code.
func Init(args []string) int {
	if len(args) < 2 {
		fmt.Fprintln(os.Stderr, "this program is started by package machine")
		return 64
	}
	var err error
	switch args[0] {
	case argJoin:
		err = reportReady(join(args[1]))
	case argRun:
		err = run(args[1])
	case argExec:
		err = become(args[1:])
	default:
		err = fmt.Errorf("unknown argument %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		return 1
	}
	return 0
}

// join enters the machine's cgroup and makes it the root of a cgroup namespace. A namespace is a thread's own: exec
// makes the process anew with this thread alone.
func join(dir string) error {
	runtime.LockOSThread()
	c, err := readConfig(dir)
	if err != nil {
		return err
	}
	if err := joinGroup(c.Group); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make cgroup namespace: %w", err)
	}
	if err := joinGroup(filepath.Join(c.Group, systemGroup)); err != nil { // as the host's mounts name it
		return err
	}
	self, err := os.Executable() // not /proc/self/exe: it names the process
	if err != nil {
		return err
	}
	return syscall.Exec(self, []string{self, argRun, dir}, os.Environ())
}

// reportReady tells the process that waits in Start, once.
func reportReady(err error) error {
	pipe := os.NewFile(readyFD, "ready")
	defer pipe.Close()
	text := "ok"
	if err != nil {
		text = err.Error()
	}
	_, werr := io.WriteString(pipe, text)
	return errors.Join(err, werr)
}

// become replaces this process by a command that is in the machine's cgroup.
func become(argv []string) error {
	if err := joinGroup(systemGroup); err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, argv, os.Environ())
}

// run is the life of the machine.
func run(dir string) error {
	for _, fd := range []int{readyFD, ownerFD, forwardFD} {
		unix.CloseOnExec(fd)
	}
	s := newSupervisor()
	owner := os.NewFile(ownerFD, "owner")
	c, control, err := boot(dir)
	if err := reportReady(err); err != nil {
		return err
	}
	go s.serve(control)
	go s.reap()
	if c.Owned {
		io.Copy(io.Discard, owner) //nolint:errcheck // any end is the owner's
		if !s.disowned.Load() {
			return nil
		}
	}
	select {}
}

// boot does all that must be there before the machine is ready.
func boot(dir string) (Config, net.Listener, error) {
	c, err := readConfig(dir)
	if err != nil {
		return c, nil, err
	}
	control, err := net.Listen("unix", filepath.Join(dir, controlSock)) // before the host's directories are out of sight
	if err != nil {
		return c, nil, fmt.Errorf("listen for the host: %w", err)
	}
	if err := makeRoot(c); err != nil {
		return c, nil, err
	}
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return c, nil, fmt.Errorf("set host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return c, nil, err
	}
	for name, value := range c.Sysctls {
		if !strings.HasPrefix(name, "net/") {
			return c, nil, fmt.Errorf("sysctl %s is the host's too", name)
		}
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return c, nil, fmt.Errorf("set sysctl: %w", err)
		}
	}
	if c.Forward != "" {
		l, err := net.FileListener(os.NewFile(forwardFD, "forward"))
		if err != nil {
			return c, nil, fmt.Errorf("use the host's listener: %w", err)
		}
		go forward(l, c.Forward)
	}
	return c, control, nil
}
