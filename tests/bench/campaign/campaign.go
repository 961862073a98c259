// Package campaign measures: every workload against every peer, round after round, in an order that rotates, so that what
// else the machine does falls on all alike.
package campaign

import (
	"context"
	"fmt"
	"io"
	"time"

	"conduit.io/conduit/tests/bench/peers"
	"conduit.io/conduit/tests/bench/report"
	"conduit.io/conduit/tests/bench/rig"
	"conduit.io/conduit/tests/bench/workload"
)

// Plan is what to measure.
type Plan struct {
	Rounds    int           // at most
	Until     time.Time     // when to end; no round begins that would last longer than that. Zero for never
	Sample    time.Duration // of a closed loop, about, and of a bulk transfer
	Latency   time.Duration // of an open loop
	Peers     []*peers.Def
	Workloads []*workload.Workload
}

// Campaign is a plan at work.
type Campaign struct {
	Plan
	Starter  *peers.Starter
	Tools    *workload.Tools
	Progress io.Writer // a line for each sample

	started []*peers.Peer
	cells   []*cell
	run     *report.Run
	done    int
	begun   time.Time
	longest time.Duration // of a round
}

// cell is a workload with a peer.
type cell struct {
	w        *workload.Workload
	p        *peers.Peer
	size     workload.Size
	hopeless string // it does not work at all; why
}

// Run measures, and appends what it finds to the run that Start was given: whole rounds, whose number is in its settings. An
// error ends the measurement, and leaves the rounds that were whole by then; a peer that fails does not, its samples say so.
func (c *Campaign) Run(ctx context.Context) error {
	run := c.run
	if err := c.calibrate(ctx); err != nil {
		return err
	}
	c.begun = time.Now()
	for round := range c.Rounds {
		if !c.fits() {
			fmt.Fprintf(c.Progress, "no time is left for round %d\n", round+1)
			return nil
		}
		whole, began := len(run.Samples), time.Now()
		if err := c.round(ctx, round); err != nil {
			run.Samples = run.Samples[:whole]
			return err
		}
		run.Settings.Rounds = round + 1
		c.longest = max(c.longest, time.Since(began))
	}
	return nil
}

// fits reports whether one more round ends in time. The first always does: without it, all was in vain.
func (c *Campaign) fits() bool {
	return c.longest == 0 || c.Until.IsZero() || time.Now().Add(c.longest).Before(c.Until)
}

// round runs every workload against every peer. Where it begins rotates.
func (c *Campaign) round(ctx context.Context, round int) error {
	for _, w := range c.Workloads {
		row := c.row(w)
		for i := range row {
			if err := c.sample(ctx, row[(i+round)%len(row)], round); err != nil {
				return err
			}
		}
	}
	return nil
}

// Start starts the peers that are there, and notes in run which and why not the others. They are left running: their Stop
// is the rig's to call.
func (c *Campaign) Start(ctx context.Context, run *report.Run) error {
	c.run = run
	for _, w := range c.Workloads {
		run.Workloads = append(run.Workloads, report.Workload{Name: w.Name, Title: w.Title, Kind: string(w.Kind), Generator: c.Tools.Generator(w)})
	}
	lanes := workload.Lanes(c.Workloads)
	for _, d := range c.Peers {
		if !d.ServesAny(lanes) {
			continue
		}
		info := report.Peer{Name: d.Name, Title: d.Title, Hops: d.Hops, MTLS: d.MTLS(), Control: d.Control()}
		version, err := c.Starter.Find(d)
		if err == nil {
			var p *peers.Peer
			if p, err = c.Starter.Start(ctx, d, d.Name, lanes); err == nil {
				c.started = append(c.started, p)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		info.Version = version
		if err != nil {
			info.Skipped = err.Error()
			fmt.Fprintf(c.Progress, "%s is left out: %v\n", d.Name, err)
		}
		run.Peers = append(run.Peers, info)
	}
	for _, w := range c.Workloads {
		for _, p := range c.started {
			if p.Serves(w.Lane) {
				c.cells = append(c.cells, &cell{w: w, p: p})
			}
		}
	}
	return nil
}

func (c *Campaign) row(w *workload.Workload) []*cell {
	var out []*cell
	for _, x := range c.cells {
		if x.w == w {
			out = append(out, x)
		}
	}
	return out
}

// The first requests warm a peer up, the next tell how many it can answer in the time of a sample.
const (
	warmUp    = 500
	shortest  = 300 * time.Millisecond
	mostAtAll = 1 << 20
)

// calibrate warms every cell up, and finds its size.
func (c *Campaign) calibrate(ctx context.Context) error {
	for i, x := range c.cells {
		left := c.within(c.estimate(len(c.cells)-i, c.Rounds))
		fmt.Fprintf(c.Progress, "warming up %d/%d: %s, %s, %s left\n", i+1, len(c.cells), x.w.Name, x.p.Name, left)
		if err := c.fit(ctx, x); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			x.hopeless = err.Error()
			fmt.Fprintf(c.Progress, "  %s: %v\n", x.p.Name, err)
		}
	}
	return nil
}

func (c *Campaign) fit(ctx context.Context, x *cell) error {
	s := workload.Size{Requests: warmUp, Duration: min(c.Sample, shortest)}
	for {
		o, err := c.Tools.Run(ctx, x.w, x.p, s)
		switch {
		case err != nil:
			return err
		case o.Completed == 0 || o.Failed > o.Completed/10:
			return fmt.Errorf("%d of %d requests failed: %s", o.Failed, o.Failed+o.Completed, o.Why)
		case x.w.Kind == workload.Latency:
			x.size.Duration = c.Latency
			return nil
		case x.w.Kind == workload.Bulk:
			x.size.Duration = c.Sample
			return nil
		}
		perSecond := float64(o.Completed) / o.Seconds
		want := min(max(int(perSecond*c.Sample.Seconds()), warmUp), mostAtAll)
		if s.Requests*4 >= want {
			x.size.Requests = want - want%x.w.Connections
			return nil
		}
		s.Requests = max(want/4, warmUp)
	}
}

// sample measures a cell once.
func (c *Campaign) sample(ctx context.Context, x *cell, round int) error {
	s := report.Sample{Workload: x.w.Name, Peer: x.p.Name, Round: round}
	if x.hopeless != "" {
		s.Error = x.hopeless
	} else if err := c.measure(ctx, x, &s); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.Error = err.Error()
	}
	c.run.Samples = append(c.run.Samples, s)
	c.done++
	c.tell(&s)
	return nil
}

func (c *Campaign) measure(ctx context.Context, x *cell, s *report.Sample) error {
	procs := x.p.Processes()
	before, err := rig.CPU(procs...)
	if err != nil {
		return err
	}
	o, err := c.Tools.Run(ctx, x.w, x.p, x.size)
	if err != nil {
		return err
	}
	after, err := rig.CPU(procs...)
	if err != nil {
		return err
	}
	mem, err := rig.Resident(procs...)
	if err != nil {
		return err
	}
	s.Completed, s.Failed, s.Seconds, s.Bytes = o.Completed, o.Failed, o.Seconds, o.Bytes
	s.CPU, s.RSS, s.Anon = (after - before).Seconds(), mem.RSS, mem.Anon
	if x.w.Kind == workload.Latency && o.Latency != nil {
		s.Latency = &report.Latency{P50: o.Latency.P50, P99: o.Latency.P99, P999: o.Latency.P999}
	}
	if o.Failed > 0 {
		s.Error = fmt.Sprintf("%d requests failed: %s", o.Failed, o.Why)
	}
	return nil
}
