package campaign

import (
	"fmt"
	"time"

	"conduit.io/conduit/tests/bench/report"
)

// tell says what a sample was, and how long the rest will take.
func (c *Campaign) tell(s *report.Sample) {
	total := len(c.cells) * c.Rounds
	left := time.Since(c.begun) / time.Duration(c.done) * time.Duration(total-c.done)
	fmt.Fprintf(c.Progress, "%4d/%d round %d  %-12s %-20s %-40s %s left\n",
		c.done, total, s.Round+1, s.Workload, s.Peer, brief(s), left.Round(time.Second))
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
