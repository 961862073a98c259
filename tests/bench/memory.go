package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"conduit.io/conduit/tests/bench/memory"
	"conduit.io/conduit/tests/bench/peers"
	"conduit.io/conduit/tests/bench/report"
)

const (
	settle   = 30 * time.Second // longer than Conduit's period of giving memory back, and Go's of returning it
	loadTime = 10 * time.Second
	growth   = 30 * time.Second // it takes to make all the connections of a step, about
	many     = 10000            // connections
)

// few are the counts of idle connections that all kinds can have at the same time. With many for each of them, the kernel
// would be short of memory for TCP (net.ipv4.tcp_mem) on a machine of this size, and connections would be lost.
var few = []int{0, 100, 1000}

// fullMemory measures every peer: idle connections of each kind, and load. Every count has processes of its own.
func fullMemory(ctx context.Context, b *bench, o *options, r *report.Run, progress io.Writer) error {
	m := &memory.Meter{Starter: b.starter, Tools: b.tools, Settle: settle, Progress: progress}
	steps := [][]*memory.Station{nil}
	for _, k := range memory.Kinds {
		for _, n := range few {
			steps[0] = append(steps[0], memory.Stations(k, o.plan.Peers, n)...)
		}
		steps = append(steps, memory.Stations(k, o.plan.Peers, many))
	}
	loaded := slices.DeleteFunc(slices.Clone(o.plan.Peers), func(d *peers.Def) bool { return d.Control() || !d.Serves(peers.H2) })
	tell := func(left time.Duration) {
		fmt.Fprintf(progress, "memory: %v left, and %v for the rounds\n", left, o.plan.Estimate())
	}
	loads := func(n int) time.Duration { return time.Duration(n) * loadTime }
	for i, stations := range steps {
		tell(loads(len(loaded)) + time.Duration(len(steps)-i)*(settle+growth))
		if err := m.Idle(ctx, r, stations, nil); err != nil {
			return err
		}
	}
	for i, d := range loaded {
		tell(loads(len(loaded) - i))
		if err := m.Load(ctx, r, d, loadTime); err != nil {
			return err
		}
	}
	return nil
}

// memoryOnly measures Conduit's memory against its ceilings: all at the same time, in processes of their own.
func memoryOnly(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	o.realTime = false
	b, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer b.rig.Close()
	r := begin(o, b.rig)
	ours := slices.DeleteFunc(peers.Defs(), func(d *peers.Def) bool { return d.Name != peers.Conduit && d.Name != peers.ConduitMesh })
	var stations []*memory.Station
	for _, k := range memory.Kinds {
		for _, n := range []int{0, 1000, many} {
			stations = append(stations, memory.Stations(k, ours, n)...)
		}
	}
	for _, d := range ours {
		r.Peers = append(r.Peers, report.Peer{Name: d.Name, Title: d.Title, Hops: d.Hops, MTLS: d.MTLS()})
	}
	m := &memory.Meter{Starter: b.starter, Tools: b.tools, Settle: settle, Progress: stderr}
	err = m.Idle(ctx, r, stations, func(ctx context.Context) error {
		return m.Load(ctx, r, ours[1], loadTime)
	})
	if err != nil {
		return err
	}
	r.Derive()
	if err := show(r, stdout); err != nil {
		return err
	}
	return judge(r)
}

// judge is an error when a measurement failed, or a ceiling is exceeded.
func judge(r *report.Run) error {
	var all error
	for _, m := range r.Memory {
		if m.Error != "" {
			all = errors.Join(all, fmt.Errorf("memory of %s, %s, %d connections: %s", m.Peer, m.State, m.Connections, m.Error))
		}
	}
	for _, g := range r.Goals {
		if g.Value.N > 0 && g.Ceiling > 0 && g.Value.Median > g.Ceiling {
			all = errors.Join(all, fmt.Errorf("%s: %s, above the ceiling (%s)", g.Subject, g.Measured, g.Most))
		}
	}
	return all
}
