package proxylink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// User is the uid and gid that the proxy runs as; it needs no entry in /etc/passwd.
	User = 2102

	socketName = "proxy.sock"
	logName    = "proxy.log"
	oldLogName = "proxy.log.1"
	pidName    = "proxy.pid"

	maxLog = 16 << 20 // bytes; checked when a proxy is started
)

// Socket is the path of the proxy's socket in a run directory.
func Socket(runDir string) string { return filepath.Join(runDir, socketName) }

// Files are the names, in the run directory, of what this package makes there.
func Files() []string { return []string{socketName, logName, oldLogName, pidName} }

// start runs a new proxy on a new socket, in or below the cgroup unless it is empty. exited is closed when it has ended.
func start(binary, runDir, cgroup string) (pid int, exited <-chan struct{}, err error) {
	listener, err := listen(Socket(runDir))
	if err != nil {
		return 0, nil, fmt.Errorf("start proxy: %w", err)
	}
	defer listener.Close() // the proxy has its own copy, which must be the only one, so that its death is seen
	logPath := filepath.Join(runDir, logName)
	if st, err := os.Stat(logPath); err == nil && st.Size() > maxLog {
		_ = os.Rename(logPath, filepath.Join(runDir, oldLogName)) // if not, it just grows on
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, nil, fmt.Errorf("start proxy: %w", err)
	}
	defer log.Close()
	in, err := openCgroup(cgroup)
	if err != nil {
		return 0, nil, fmt.Errorf("start proxy: %w", err)
	}
	defer in.Close() // of nil: nothing
	cmd := command(binary, log, listener)
	place(cmd.SysProcAttr, in)
	err = spawn(cmd)
	if errors.Is(err, fs.ErrPermission) {
		// The binary may lie in a directory that only root may enter: hand over the file itself.
		var file *os.File
		if file, err = os.Open(binary); err == nil {
			cmd = command("/proc/self/fd/4", log, listener, file)
			place(cmd.SysProcAttr, in)
			err = spawn(cmd)
			file.Close()
		}
	}
	if err != nil {
		return 0, nil, fmt.Errorf("start proxy %s: %w", binary, explain(err, in))
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // only to bury it: its death shows on the link
		close(done)
	}()
	if err := writePID(runDir, cmd.Process.Pid); err != nil {
		cmd.Process.Kill()
		return 0, nil, fmt.Errorf("start proxy: %w", err)
	}
	return cmd.Process.Pid, done, nil
}

// listen makes the socket under another name first: at path there is never one with the wrong mode.
func listen(path string) (*os.File, error) {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(tmp, 0o600); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, err
	}
	return l.File()
}

// command is a proxy in its own session, with no privilege but CAP_SYS_ADMIN, which setns(2) into pods' namespaces and
// writing the socket-tag map need, and with nothing of the agent's environment.
func command(binary string, log *os.File, files ...*os.File) *exec.Cmd {
	cmd := exec.Command(binary, "--link-fd", "3")
	cmd.Args[0] = "conduit-proxy"
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:      true,
		Credential:  &syscall.Credential{Uid: User, Gid: User},
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN},
	}
	return cmd
}

// spawn starts cmd from a thread that has given up gaining privileges, which the child inherits; the thread ends here.
func spawn(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that no other goroutine gets the thread
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			done <- fmt.Errorf("set no_new_privs: %w", err)
			return
		}
		done <- cmd.Start()
	}()
	return <-done
}

// record identifies a process beyond the reuse of its number.
type record struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // field 22 of /proc/PID/stat: clock ticks since boot
}

func writePID(runDir string, pid int) error {
	data, err := json.Marshal(record{pid, startTime(pid)})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(runDir, pidName), data, 0o600)
}

func startTime(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The command's name, in parentheses, may hold anything: count from its end.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

// ErrNone is returned by Running when no proxy was started for the run directory, or it has ended.
var ErrNone = errors.New("no proxy is running")

// Running is the process number of the run directory's proxy.
func Running(runDir string) (int, error) {
	data, err := os.ReadFile(filepath.Join(runDir, pidName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, ErrNone
	}
	if err != nil {
		return 0, fmt.Errorf("find proxy: %w", err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return 0, fmt.Errorf("find proxy: %s: %w", pidName, err)
	}
	if r.Start == "" || startTime(r.PID) != r.Start || zombie(r.PID) {
		return 0, ErrNone
	}
	return r.PID, nil
}

func zombie(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	rest := strings.TrimSpace(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// Kill ends the run directory's proxy and waits until it is gone. No proxy is no error.
func Kill(runDir string, timeout time.Duration) error {
	pid, err := Running(runDir)
	if errors.Is(err, ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill proxy: %w", err)
	}
	defer unix.Close(fd)
	if now, err := Running(runDir); err != nil || now != pid { // the number may have been reused before pidfd_open
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill proxy: %w", err)
	}
	return awaitExit(fd, pid, timeout)
}

func awaitExit(pidfd, pid int, timeout time.Duration) error {
	end := time.Now().Add(timeout)
	for {
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("proxy (pid %d) did not end within %v", pid, timeout)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}
