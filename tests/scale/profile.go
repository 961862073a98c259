package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"conduit.io/conduit/control"
)

// The controller has no profiler for strangers to find. To be profiled, it is run by this program, in a process of its own: as
// "scale profiled-controller FLAGS", with the profiler at the address in the environment.
const (
	profiledCommand = "profiled-controller"
	profilerEnv     = "SCALE_PROFILER"
)

func profiled(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", os.Getenv(profilerEnv))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer l.Close()
	go func() { _ = http.Serve(l, nil) }() // until the process ends
	return control.Main(ctx, args, os.Stdout, os.Stderr)
}

// profiling keeps profiles of the controller under the name of a step: of its time while the step is done, and of its heap
// afterwards.
func (r *run) profiling(step string, do func() error) error {
	if r.profile == "" || r.ctl == nil || r.ctl.cmd == nil {
		return do()
	}
	ended := make(chan error, 1)
	go func() {
		ended <- r.ctl.saveProfile("profile?seconds=10", filepath.Join(r.profile, fmt.Sprintf("%d-%s.cpu", r.town.nodes, step)))
	}()
	err := do()
	if e := <-ended; e != nil {
		r.say("no profile of its time: " + e.Error())
	}
	if e := r.ctl.saveProfile("heap?gc=1", filepath.Join(r.profile, fmt.Sprintf("%d-%s.heap", r.town.nodes, step))); e != nil {
		r.say("no profile of its heap: " + e.Error())
	}
	return err
}

func (c *controller) saveProfile(what, path string) error {
	res, err := http.Get("http://" + c.profiler + "/debug/pprof/" + what)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the profiler answers %s", res.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(f, res.Body)
	return err
}
