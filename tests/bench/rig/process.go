package rig

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that runs until it is stopped, with the processes that it started itself.
type Process struct {
	Name string
	log  string
	cmd  *exec.Cmd
	gone chan struct{}
}

// PID is the first process's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ready waits until somebody listens at every address; the process having ended before is an error that shows what it
// said.
func (p *Process) Ready(ctx context.Context, addrs ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var d net.Dialer
	for _, a := range addrs {
		for {
			c, err := d.DialContext(ctx, "tcp", a)
			if err == nil {
				c.Close()
				break
			}
			select {
			case <-p.gone:
				return p.fault(errGone)
			case <-ctx.Done():
				return p.fault(fmt.Errorf("does not listen at %s: %w", a, context.Cause(ctx)))
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}

// Alive is an error when the process has ended.
func (p *Process) Alive() error {
	select {
	case <-p.gone:
		return p.fault(errGone)
	default:
		return nil
	}
}

func (p *Process) fault(err error) error {
	said, _ := os.ReadFile(p.log)
	return fmt.Errorf("%s: %w: %s", p.Name, err, tail(said))
}

// stopGrace is how long a process may take to end before it is killed: nothing that it does then is measured.
const stopGrace = time.Second

// Stop ends processes: all are asked at once, then those killed that do not follow.
func Stop(ps ...*Process) {
	for _, p := range ps {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	grace := time.After(stopGrace)
	late := false
	for _, p := range ps {
		if !late {
			select {
			case <-p.gone:
				continue
			case <-grace:
				late = true
			}
		}
		for _, pid := range tree(p.PID()) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-p.gone
	}
}

// tree is pid and its descendants.
func tree(pid int) []int {
	out := []int{pid}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		for _, c := range strings.Fields(string(children)) {
			if n, err := strconv.Atoi(c); err == nil {
				out = append(out, tree(n)...)
			}
		}
	}
	return out
}

// CPU is the processor time that processes and their descendants have used so far, over all threads, those that have
// ended included.
func CPU(ps ...*Process) (time.Duration, error) {
	sum := time.Duration(0)
	for _, p := range ps {
		for _, pid := range tree(p.PID()) {
			var ts unix.Timespec
			// The clock of another process, exact to the nanosecond, as clock_getcpuclockid(3) makes it.
			if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
				return 0, p.fault(fmt.Errorf("read processor time: %w", err))
			}
			sum += time.Duration(ts.Nano())
		}
	}
	return sum, nil
}

// Memory is what processes keep resident, in KiB.
type Memory struct {
	RSS  int `json:"rss_kb"`
	Anon int `json:"anon_kb"` // without the pages of files, which the kernel can drop and processes share
}

// Resident is the sum over processes and their descendants.
func Resident(ps ...*Process) (Memory, error) {
	var m Memory
	for _, p := range ps {
		for _, pid := range tree(p.PID()) {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				return m, p.fault(fmt.Errorf("read memory: %w", err))
			}
			one := parseStatus(status)
			m.RSS += one.RSS
			m.Anon += one.Anon
		}
	}
	return m, nil
}

func parseStatus(status []byte) Memory {
	var m Memory
	for line := range bytes.Lines(status) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "VmRSS:":
			m.RSS = kb
		case "RssAnon:":
			m.Anon = kb
		}
	}
	return m
}
