package machine

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	restartAfter = time.Second
	killAfter    = 10 * time.Second
	logDir       = "/var/log/machine"
)

// supervisor is the init's work: it starts daemons again when they end, and collects every process that ends.
type supervisor struct {
	disowned atomic.Bool

	mu      sync.Mutex // also held from fork to the entry in running: the reaper must not come first
	daemons map[string]*daemon
	running map[int]*daemon
}

type daemon struct {
	Daemon
	pid    int
	want   bool
	starts int
	exit   string
	ended  chan struct{} // closed when pid has ended
}

func newSupervisor() *supervisor {
	return &supervisor{daemons: map[string]*daemon{}, running: map[int]*daemon{}}
}

// reap collects ended processes, those of containers included: they are this process's when their own parents have gone.
func (s *supervisor) reap() {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGCHLD)
	for range sig {
		for s.reapOne() {
			continue
		}
	}
}

func (s *supervisor) reapOne() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
	if err != nil || pid <= 0 {
		return false
	}
	d := s.running[pid]
	if d == nil {
		return true
	}
	delete(s.running, pid)
	d.pid, d.exit = 0, fmt.Sprintf("exit code %d", status.ExitStatus())
	if status.Signaled() {
		d.exit = status.Signal().String()
	}
	close(d.ended)
	if d.want {
		time.AfterFunc(restartAfter, func() { s.again(d) })
	}
	return true
}

func (s *supervisor) again(d *daemon) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.want && d.pid == 0 {
		if err := s.fork(d); err != nil {
			d.exit = err.Error()
			time.AfterFunc(restartAfter, func() { s.again(d) })
		}
	}
}

// fork starts d's process. s.mu is held.
func (s *supervisor) fork(d *daemon) error {
	path, err := exec.LookPath(d.Argv[0])
	if err != nil {
		return err
	}
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(logDir, d.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, err := syscall.ForkExec(path, d.Argv, &syscall.ProcAttr{
		Dir: "/", Env: append(os.Environ(), d.Env...), Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	d.pid, d.ended = pid, make(chan struct{})
	d.starts++
	s.running[pid] = d
	return nil
}

func (s *supervisor) start(spec Daemon) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.daemons[spec.Name]
	if d == nil {
		d = &daemon{Daemon: spec}
		s.daemons[spec.Name] = d
	}
	if len(spec.Argv) > 0 {
		d.Daemon = spec
	}
	if len(d.Argv) == 0 {
		return fmt.Errorf("%s has never been started", spec.Name)
	}
	d.want = true
	if d.pid != 0 {
		return nil
	}
	return s.fork(d)
}

// stop ends a daemon and returns when it has ended. What the daemon has started is left alone.
func (s *supervisor) stop(name string) error {
	s.mu.Lock()
	d := s.daemons[name]
	if d == nil || d.pid == 0 {
		if d != nil {
			d.want = false
		}
		s.mu.Unlock()
		return nil
	}
	d.want = false
	pid, ended := d.pid, d.ended
	unix.Kill(pid, unix.SIGTERM) //nolint:errcheck // collected only under s.mu: the ID is the daemon's
	s.mu.Unlock()
	select {
	case <-ended:
		return nil
	case <-time.After(killAfter):
	}
	s.mu.Lock()
	if d.pid == pid {
		unix.Kill(pid, unix.SIGKILL) //nolint:errcheck // as above
	}
	s.mu.Unlock()
	<-ended
	return nil
}

func (s *supervisor) status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Status
	for _, d := range s.daemons {
		list = append(list, Status{Name: d.Name, PID: d.pid, Starts: d.starts, LastExit: d.exit})
	}
	slices.SortFunc(list, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (s *supervisor) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var req request
			if err := json.NewDecoder(c).Decode(&req); err != nil {
				return
			}
			json.NewEncoder(c).Encode(s.do(req)) //nolint:errcheck // whoever asked has gone
		}()
	}
}

func (s *supervisor) do(req request) reply {
	var err error
	switch req.Op {
	case "start":
		err = s.start(req.Daemon)
	case "stop":
		err = s.stop(req.Daemon.Name)
	case "disown":
		s.disowned.Store(true)
	case "status":
	default:
		err = fmt.Errorf("unknown request %q", req.Op)
	}
	r := reply{Daemons: s.status()}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}
