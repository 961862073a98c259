// Package rig starts the programs of a measurement on the cores meant for them, measures their processor time and
// memory, and ends them, whatever happens to the program that measures.
package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cores says where what runs: proxies on their own core, generator and backend on others, so that what they cost is
// not what the proxies wait for.
type Cores struct {
	Proxy int   `json:"proxy"`
	Load  []int `json:"load"` // the generator on the first, the backend on the last
}

// PickCores divides the processors that this process may use: the last is the proxies', the one or two before are the
// generator's and the backend's. One alone is shared by all.
func PickCores() (Cores, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return Cores{}, fmt.Errorf("read affinity: %w", err)
	}
	var own []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			own = append(own, i)
		}
	}
	return divide(own), nil
}

func divide(own []int) Cores {
	last := len(own) - 1
	if last == 0 {
		return Cores{Proxy: own[0], Load: own}
	}
	return Cores{Proxy: own[last], Load: own[max(0, last-2):last]}
}

// Rig owns a directory and the processes it started.
type Rig struct {
	Cores Cores
	Dir   string // for files of the processes; removed by Close
	// RealTime: what it starts goes before everything else on the machine (SCHED_RR, sched(7)).
	RealTime bool

	jobs chan func()
	quit chan struct{}
	mu   sync.Mutex
	all  []*Process
}

// Open makes a rig, if realTime with that where it is permitted. It raises the limit of open files as far as it may:
// children inherit it.
func Open(cores Cores, realTime bool) (*Rig, error) {
	dir, err := os.MkdirTemp("", "conduit-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	raiseFiles()
	r := &Rig{Cores: cores, Dir: dir, jobs: make(chan func()), quit: make(chan struct{})}
	ready := make(chan struct{})
	go r.serve(realTime, ready)
	<-ready
	return r, nil
}

// serve starts processes on one thread that lives as long as the rig: PR_SET_PDEATHSIG, by which the kernel ends a child
// when its parent dies, is about the thread that started it (prctl(2)), and children inherit the thread's cores.
func (r *Rig) serve(realTime bool, ready chan<- struct{}) {
	runtime.LockOSThread()
	if realTime {
		r.RealTime = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}, 0) == nil
	}
	close(ready)
	for {
		select {
		case job := <-r.jobs:
			job()
		case <-r.quit:
			return
		}
	}
}

func (r *Rig) start(core int, cmd *exec.Cmd) error {
	// With a group of its own, a process does not get the terminal's Ctrl-C: Close ends it, in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	done := make(chan error)
	r.jobs <- func() {
		var set unix.CPUSet
		set.Set(core)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			done <- fmt.Errorf("pin to core %d: %w", core, err)
			return
		}
		done <- cmd.Start()
	}
	return <-done
}

// Proxy starts argv on the proxies' core. What it prints goes to the file name.log in Dir.
func (r *Rig) Proxy(name string, argv, env []string) (*Process, error) {
	return r.daemon(r.Cores.Proxy, name, argv, env)
}

// Backend starts argv on the backend's core.
func (r *Rig) Backend(name string, argv, env []string) (*Process, error) {
	return r.daemon(r.Cores.Load[len(r.Cores.Load)-1], name, argv, env)
}

func (r *Rig) daemon(core int, name string, argv, env []string) (*Process, error) {
	log, err := os.Create(filepath.Join(r.Dir, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, r.Dir
	return r.watch(core, name, log.Name(), cmd)
}

// watch starts cmd, and knows when it ends.
func (r *Rig) watch(core int, name, log string, cmd *exec.Cmd) (*Process, error) {
	if err := r.start(core, cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{Name: name, log: log, cmd: cmd, gone: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.gone)
	}()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, p)
	return p, nil
}

// Generate runs argv to its end on the generator's core, and returns what it printed on stdout. When ctx ends before, it
// is killed.
func (r *Rig) Generate(ctx context.Context, argv []string) ([]byte, error) {
	return r.Run(ctx, r.Cores.Load[0], argv)
}

// Run is Generate on another core.
func (r *Rig) Run(ctx context.Context, core int, argv []string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &errs, r.Dir
	if err := r.start(core, cmd); err != nil {
		return nil, fmt.Errorf("run %s: %w", argv[0], err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	stop()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return out.Bytes(), fmt.Errorf("run %s: %w: %s", filepath.Base(argv[0]), err, tail(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// Close ends every process and removes the directory.
func (r *Rig) Close() {
	r.mu.Lock()
	all := slices.Clone(r.all)
	r.mu.Unlock()
	Stop(all...)
	close(r.quit)
	_ = os.RemoveAll(r.Dir)
}

// Pause waits for d, or for the end of ctx, which it returns.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// raiseFiles asks for as many files as the kernel allows, or else for what the hard limit allows.
func raiseFiles() {
	const most = 1 << 20
	var l unix.Rlimit
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: most}) != nil && unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil {
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: l.Max, Max: l.Max})
	}
}

// Files is how many files a process may open.
func Files() (int, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read the limit of files: %w", err)
	}
	return int(l.Cur), nil
}

// tail is the end of what a program printed.
func tail(b []byte) string {
	const most = 600
	b = bytes.TrimSpace(b)
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(b)
}

var errGone = errors.New("has ended")
