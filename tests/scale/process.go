package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"conduit.io/conduit/deploy"
)

// usage is what a process has taken so far.
type usage struct {
	cpu             time.Duration
	rss, anon, peak int64 // bytes; peak since forgetPeak
}

// tick is the unit of CPU time in /proc.
const tick = 10 * time.Millisecond

func usageOf(pid int) (u usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(n) * tick
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			u.rss = kb << 10
		case "RssAnon":
			u.anon = kb << 10
		case "VmHWM":
			u.peak = kb << 10
		}
	}
	return u, nil
}

// cpus is the CPU time that each part has taken.
type cpus struct{ controller, api, agents time.Duration }

func (c cpus) minus(b cpus) cpus {
	return cpus{c.controller - b.controller, c.api - b.api, c.agents - b.agents}
}

// cpus is what they have taken so far; of the controller, since it was started.
func (r *run) cpus() (c cpus, err error) {
	for pid, to := range map[int]*time.Duration{r.ctl.cmd.Process.Pid: &c.controller, r.site.apiPid(): &c.api, os.Getpid(): &c.agents} {
		u, err := usageOf(pid)
		if err != nil {
			return c, err
		}
		*to = u.cpu
	}
	return c, nil
}

// forgetPeak has peak begin anew.
func forgetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// controller is a replica that can be started more than once, at the same addresses.
type controller struct {
	program, kubeconfig, log string
	addr, admin              string
	profiler                 string // its address; empty: there is none

	cmd   *exec.Cmd
	ended chan struct{}
	began time.Time
	ready time.Time
}

// newController takes a program, or has this one be profiled.
func newController(program string, profiled bool, dir, kubeconfig string) (*controller, error) {
	c := &controller{program: program, kubeconfig: kubeconfig, log: filepath.Join(dir, "controller.log")}
	addrs := []*string{&c.addr, &c.admin}
	if profiled {
		addrs, c.program = append(addrs, &c.profiler), "/proc/self/exe"
	}
	for _, a := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		*a = l.Addr().String()
	}
	return c, nil
}

// start starts the replica, and returns when it is ready.
func (c *controller) start(ctx context.Context) error {
	f, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	args := []string{"--kubernetes", "--kubeconfig", c.kubeconfig, "--addr", c.addr, "--admin", c.admin, "--namespace", deploy.Namespace}
	if c.profiler != "" {
		args = append([]string{profiledCommand}, args...)
	}
	c.cmd = exec.CommandContext(context.Background(), c.program, args...)
	c.cmd.Env = append(os.Environ(), profilerEnv+"="+c.profiler)
	c.cmd.Stdout, c.cmd.Stderr = f, f
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.began, c.ended = time.Now(), make(chan struct{})
	if err := c.cmd.Start(); err != nil {
		return err
	}
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait() // the log says why
		close(ended)
	}(c.cmd, c.ended)
	for poll := time.NewTicker(10 * time.Millisecond); ; {
		if res, err := http.Get("http://" + c.admin + "/readyz"); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				poll.Stop()
				c.ready = time.Now()
				return nil
			}
		}
		select {
		case <-poll.C:
		case <-c.ended:
			text, _ := os.ReadFile(c.log)
			return fmt.Errorf("the controller has ended:\n%s", text[max(0, len(text)-4000):])
		case <-ctx.Done():
			return fmt.Errorf("the controller is not ready: %w", ctx.Err())
		}
	}
}

// stop asks the replica to end, and waits until it has.
func (c *controller) stop() {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-c.ended:
	case <-time.After(30 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.ended
	}
}

func (c *controller) usage() (usage, error) { return usageOf(c.cmd.Process.Pid) }

// metrics reads the controller's exposition.
func (c *controller) metrics() (samples, error) {
	res, err := http.Get("http://" + c.admin + "/metrics")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return readSamples(bufio.NewScanner(res.Body), func(string) bool { return true })
}

// samples are the lines of an exposition, by name and labels as written.
type samples map[string]float64

func readSamples(lines *bufio.Scanner, keep func(name string) bool) (samples, error) {
	out := samples{}
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if i := strings.LastIndexByte(lines.Text(), '}'); i >= 0 {
			name, value = lines.Text()[:i+1], strings.TrimSpace(lines.Text()[i+1:])
		}
		if !ok || strings.HasPrefix(name, "#") || !keep(name) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, errors.New("no metric: " + lines.Text())
		}
		out[name] = v
	}
	return out, lines.Err()
}

// sum adds up a family's series that have all of the labels.
func (s samples) sum(family string, labels ...string) (total float64) {
next:
	for name, v := range s {
		if name != family && !strings.HasPrefix(name, family+"{") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(name, l) {
				continue next
			}
		}
		total += v
	}
	return total
}
