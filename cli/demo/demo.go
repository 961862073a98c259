package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"conduit.io/conduit/cli/output"
)

// Options are what `conduit demo` was asked for.
type Options struct {
	For     time.Duration // how long the load runs; 0 until ctx ends
	JSON    bool          // one Result on Out, progress on Err
	Wide    bool          // more columns
	Live    bool          // Out is a terminal: redraw the table every second
	Rate    float64       // requests per second that users make
	Out     io.Writer
	Err     io.Writer
	Getenv  func(string) string
	BinDir  string   // conduit-agent, conduit-proxy, conduit-cni, and cni/ with the reference plugins
	Program []string // the command, without its one argument, that becomes a process of the application

	withoutMesh bool // tests: no agents, and clients dial pods
}

const (
	warmLimit = 45 * time.Second // of the load generator's warming up, which has a limit of its own
	stopLimit = 15 * time.Second // of its last calls
	period    = time.Second      // between readings
	window    = 10               // periods that the live table looks back
)

// Run builds the cluster, runs the load, shows what happens, and removes everything: at the end, when ctx ends, on
// errors, and on panics. ctx ending while the load runs is a good end.
func Run(ctx context.Context, o Options) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := newScreen(&o, cancel)
	pluginDir, err := findPlugins(o.BinDir, o.Getenv)
	if err != nil {
		return err
	}
	began := time.Now()
	swept, err := sweep()
	if err != nil {
		s.note("%v", err)
	}
	for _, name := range swept {
		s.step(began, "removed what %s left behind when it was killed", name)
	}
	began = time.Now()
	c, err := newCluster(o.BinDir, pluginDir, !o.withoutMesh)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clean(s, c)) }()
	s.step(began, "two nodes on one switch: %s and %s", nodeNames[0], nodeNames[1])
	if err := build(ctx, &o, s, c); err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		return &output.Problem{What: "the demo did not come up", Err: err, Next: "conduit check"}
	}
	return load(ctx, &o, s, c)
}

// build brings agents, pods and application up.
func build(ctx context.Context, o *Options, s *screen, c *cluster) error {
	steps := []struct {
		done string
		do   func() error
	}{
		{"an agent and a proxy on each node; BPF programs loaded and pinned", func() error { return c.startAgents(ctx) }},
		{fmt.Sprintf("%d pods wired by bridge and conduit-cni, their sockets steered (mTLS mode STRICT)", len(placements)),
			func() error { return c.addPods(ctx) }},
		{"the application runs: HTTP/1.1, HTTP/2, gRPC and raw TCP", func() error { return c.startProcesses(ctx, o.Program, o.Rate) }},
		{"every call is answered", func() error {
			_, err := c.loadgen().ask(ctx, "warm", "warm", warmLimit)
			return err
		}},
	}
	if o.withoutMesh {
		steps = steps[1:]
	}
	for _, step := range steps {
		began := time.Now()
		if err := step.do(); err != nil {
			return err
		}
		s.step(began, "%s", step.done)
	}
	return nil
}

// load runs the load and shows it.
func load(ctx context.Context, o *Options, s *screen, c *cluster) error {
	late := context.WithoutCancel(ctx) // after Ctrl-C the figures are still wanted
	count := newCounter(c.processes, c.agents())
	first, err := count.read(late)
	if err != nil {
		return err
	}
	if err := c.loadgen().say("go"); err != nil {
		return err
	}
	s.next(c)
	if err := watch(ctx, o, s, count, first); err != nil {
		return err
	}
	if _, err := c.loadgen().ask(late, "stop", "stopped", stopLimit); err != nil {
		return err
	}
	final, err := count.read(late)
	if err != nil {
		return err
	}
	if count.Trouble != nil {
		s.note("%v", count.Trouble)
	}
	sum := summarise(first, final)
	s.final(first, final, sum)
	if o.JSON {
		return json.NewEncoder(o.Out).Encode(sum.Result)
	}
	return nil
}

// watch reads every period until the time is over or ctx ends.
func watch(ctx context.Context, o *Options, s *screen, count *counter, first *reading) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	var over <-chan time.Time
	if o.For > 0 {
		timer := time.NewTimer(o.For)
		defer timer.Stop()
		over = timer.C
	}
	recent := []*reading{first}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-over:
			return nil
		case <-tick.C:
		}
		now, err := count.read(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		recent = append(recent, now)
		recent = recent[max(0, len(recent)-window-1):]
		s.live(recent[0], now, summarise(first, now), count.Trouble)
	}
}

// clean removes everything, and says so.
func clean(s *screen, c *cluster) error {
	began := time.Now()
	if err := c.close(); err != nil {
		return &output.Problem{What: "the demo left something behind", Err: err,
			Next: "ip netns; ls /sys/fs/bpf; and remove what begins with " + c.lab.Name()}
	}
	s.step(began, "cleaned up: no namespace, process, BPF pin or file is left")
	return nil
}
