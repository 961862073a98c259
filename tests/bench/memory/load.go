package memory

import (
	"context"
	"slices"
	"time"

	"conduit.io/conduit/tests/bench/peers"
	"conduit.io/conduit/tests/bench/report"
	"conduit.io/conduit/tests/bench/rig"
	"conduit.io/conduit/tests/bench/workload"
)

// loadName is the workload under which memory is measured.
const loadName = "open-5k"

const (
	every    = 500 * time.Millisecond
	startsUp = 5 * time.Second // what happens before is start-up
)

// Load measures a fresh peer under load for d, and appends the most that one of its processes had to run.
func (m *Meter) Load(ctx context.Context, run *report.Run, def *peers.Def, d time.Duration) error {
	m.run = run
	i := slices.IndexFunc(workload.All, func(w *workload.Workload) bool { return w.Name == loadName })
	if i < 0 {
		return errNoLoad
	}
	w := workload.All[i]
	out := report.Memory{Peer: def.Name, State: "load", Rate: w.Rate}
	s := &Station{Kind: H2C, Def: def}
	defer s.stop()
	err := m.start(ctx, s)
	if err == nil {
		var most rig.Memory
		most, err = m.under(ctx, s.peer, w, d)
		out.RSS, out.Anon = most.RSS, most.Anon
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		out.Error = err.Error()
	}
	m.add(out)
	return nil
}

// under generates load and samples meanwhile.
func (m *Meter) under(ctx context.Context, p *peers.Peer, w *workload.Workload, d time.Duration) (rig.Memory, error) {
	done := make(chan error, 1)
	go func() {
		_, err := m.Tools.Run(ctx, w, p, workload.Size{Duration: d})
		done <- err
	}()
	var most rig.Memory
	tick := time.NewTicker(every)
	defer tick.Stop()
	for start := time.Now(); ; {
		select {
		case err := <-done:
			return most, err
		case <-tick.C:
			if time.Since(start) < startsUp {
				continue
			}
		}
		for _, hop := range [][]*rig.Process{p.Outer, p.Server} {
			got, err := rig.Resident(hop...)
			if err != nil {
				<-done
				return most, err
			}
			most.RSS, most.Anon = max(most.RSS, got.RSS), max(most.Anon, got.Anon)
		}
	}
}
