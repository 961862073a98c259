package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Machine is a running machine, seen from the host. Its methods may be called from several goroutines.
type Machine struct {
	cfg  Config
	pid  int           // of the init, on the host
	addr string        // of the listener on the host
	own  io.Closer     // while it is open, the machine lives
	done chan struct{} // closed when the init was collected; nil if it is not this process's child
}

// Start starts a machine. initPath is a program whose main function is Init. If anything fails, nothing is left.
func Start(initPath string, c Config) (m *Machine, err error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, rootDir, "etc"), 0o755); err != nil {
		return nil, fmt.Errorf("start machine %s: %w", c.Name, err)
	}
	m = &Machine{cfg: c}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start machine %s: %w", c.Name, err), Remove(c.Dir))
		}
	}()
	data, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if err := writeWhole(filepath.Join(c.Dir, configFile), data); err != nil {
		return nil, err
	}
	if err := makeGroup(c.Group); err != nil {
		return nil, err
	}
	return m, m.spawn(initPath)
}

// spawn starts the init, and waits until it says that all is there.
func (m *Machine) spawn(initPath string) error {
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer readyR.Close()
	ownR, ownW, err := os.Pipe()
	if err != nil {
		readyW.Close()
		return err
	}
	m.own = ownW
	files := []*os.File{readyW, ownR}
	if m.cfg.Forward != "" {
		l, err := m.listen()
		if err != nil {
			return errors.Join(err, readyW.Close(), ownR.Close())
		}
		files = append(files, l)
	}
	cmd := exec.Command(initPath, argJoin, m.cfg.Dir)
	cmd.Env = []string{"HOME=/root", "PATH=/opt/kubernetes/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.ExtraFiles = files
	logFile := filepath.Join(m.cfg.Dir, "init.log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err == nil {
		cmd.Stderr = log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true,
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC}
		err = cmd.Start()
		log.Close()
	}
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		return err
	}
	m.pid, m.done = cmd.Process.Pid, make(chan struct{})
	go func() {
		cmd.Wait() //nolint:errcheck // it ends by a signal
		close(m.done)
	}()
	if err := m.writeMark(); err != nil {
		cmd.Process.Kill() //nolint:errcheck // without its mark nobody else could
		return err
	}
	answer, err := io.ReadAll(readyR)
	if err == nil && string(answer) != "ok" {
		said, _ := os.ReadFile(logFile)
		err = fmt.Errorf("%s %s", answer, bytes.TrimSpace(said))
	}
	return err
}

// listen opens the host's end of Config.Forward.
func (m *Machine) listen() (*os.File, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	m.addr = l.Addr().String()
	if err := os.WriteFile(filepath.Join(m.cfg.Dir, addrFile), []byte(m.addr), 0o644); err != nil {
		return nil, err
	}
	return l.(*net.TCPListener).File()
}

func (m *Machine) writeMark() error {
	mark, err := ProcessMark(m.pid)
	if err != nil {
		return err
	}
	return writeWhole(filepath.Join(m.cfg.Dir, markFile), []byte(mark))
}

// writeWhole writes a file that is there as a whole or not at all: this process may be killed at any moment, and others
// read what it has left.
func writeWhole(file string, data []byte) error {
	if err := os.WriteFile(file+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// Open finds the running machine in dir.
func Open(dir string) (*Machine, error) {
	c, err := readConfig(dir)
	if err != nil {
		return nil, err
	}
	m := &Machine{cfg: c, pid: MarkedPID(filepath.Join(dir, markFile))}
	if m.pid == 0 {
		return nil, fmt.Errorf("open machine %s: %w", c.Name, errNoInit)
	}
	if c.Forward != "" {
		addr, err := os.ReadFile(filepath.Join(dir, addrFile))
		if err != nil {
			return nil, fmt.Errorf("open machine %s: %w", c.Name, err)
		}
		m.addr = string(addr)
	}
	return m, nil
}

// Name is the machine's host name.
func (m *Machine) Name() string { return m.cfg.Name }

// PID is the ID, on the host, of the machine's init.
func (m *Machine) PID() int { return m.pid }

// Addr is where the host reaches Config.Forward.
func (m *Machine) Addr() string { return m.addr }

// Path is the host's name of a file inside that is on the machine's own disk: not below /run, /tmp or a Bind.
func (m *Machine) Path(inside string) string { return filepath.Join(m.cfg.Dir, rootDir, inside) }

// Log is the host's name of a daemon's log.
func (m *Machine) Log(daemon string) string { return m.Path(filepath.Join(logDir, daemon+".log")) }

// NetNS is the path of the machine's network namespace, while it runs.
func (m *Machine) NetNS() string { return fmt.Sprintf("/proc/%d/ns/net", m.pid) }

// Command prepares a command that runs inside, in all namespaces and the cgroup of the machine. When ctx ends it is killed
// with what it has started, except for what has left its process group.
func (m *Machine) Command(ctx context.Context, argv ...string) *exec.Cmd {
	args := append([]string{"-t", strconv.Itoa(m.pid), "-m", "-u", "-n", "-p", "-i", "-C", "--", initBin, argExec}, argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = []string{"HOME=/root", "PATH=/opt/kubernetes/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	return cmd
}

// Run runs a command inside, and returns what it wrote on standard output.
func (m *Machine) Run(ctx context.Context, argv ...string) (string, error) {
	cmd := m.Command(ctx, argv...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s on %s: %w: %s", argv[0], m.cfg.Name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}

// Stop ends every process of the machine, and removes all that is left of it.
func (m *Machine) Stop() error {
	err := Remove(m.cfg.Dir)
	if m.own != nil {
		m.own.Close()
	}
	if m.done != nil && m.pid != 0 {
		<-m.done
	}
	return err
}

// Remove ends the machine in dir if it runs, and removes its cgroups and dir. A directory that is not there is no error.
func Remove(dir string) error {
	if err := kill(filepath.Join(dir, markFile)); err != nil {
		return fmt.Errorf("remove machine: %w", err)
	}
	c, err := readConfig(dir)
	if errors.Is(err, os.ErrNotExist) {
		return os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	if err := removeGroup(c.Group); err != nil {
		return fmt.Errorf("remove machine %s: %w", c.Name, err)
	}
	return os.RemoveAll(dir)
}
