package campaign

import (
	"fmt"
	"time"

	"conduit.io/conduit/tests/bench/report"
	"conduit.io/conduit/tests/bench/workload"
)

const (
	warming  = 500 * time.Millisecond // a cell takes so long, about
	starting = 60 * time.Millisecond  // a generator takes to start, to connect and to end
)

// Estimate is how long the plan takes, about.
func (p *Plan) Estimate() time.Duration {
	cells := 0
	for _, w := range p.Workloads {
		for _, d := range p.Peers {
			if d.Serves(w.Lane) {
				cells++
			}
		}
	}
	return p.within(p.estimate(cells, p.Rounds))
}

// estimate is how long it takes to warm up so many cells, and to run so many rounds.
func (p *Plan) estimate(cells, rounds int) time.Duration {
	round := time.Duration(0)
	for _, w := range p.Workloads {
		one := p.Sample
		if w.Kind == workload.Latency {
			one = p.Latency
		}
		for _, d := range p.Peers {
			if d.Serves(w.Lane) {
				round += one + starting
			}
		}
	}
	return time.Duration(cells)*warming + time.Duration(rounds)*round
}

// within is d, but no longer than the plan may take.
func (p *Plan) within(d time.Duration) time.Duration {
	if !p.Until.IsZero() {
		d = min(d, time.Until(p.Until))
	}
	return max(d, 0).Round(time.Second)
}

// tell says what a sample was, and how long the rest will take.
func (c *Campaign) tell(s *report.Sample) {
	total := len(c.cells) * c.Rounds
	left := time.Since(c.begun) / time.Duration(c.done) * time.Duration(total-c.done)
	fmt.Fprintf(c.Progress, "%4d/%d round %d  %-12s %-20s %-40s %s left\n",
		c.done, total, s.Round+1, s.Workload, s.Peer, brief(s), c.within(left))
}

func brief(s *report.Sample) string {
	switch {
	case s.Error != "":
		return "does not count: " + s.Error
	case s.Latency != nil:
		return fmt.Sprintf("p50 %.0f p99 %.0f p99.9 %.0f µs", s.Latency.P50, s.Latency.P99, s.Latency.P999)
	case s.Bytes > 0:
		return fmt.Sprintf("%.0f MB/s", float64(s.Bytes)/s.Seconds/1e6)
	}
	return fmt.Sprintf("%.2f µs/request, %.0f/s", s.CPU*1e6/float64(s.Completed), float64(s.Completed)/s.Seconds)
}
