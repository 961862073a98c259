package report

import (
	"fmt"

	"conduit.io/conduit/tests/bench/stats"
)

// Verdicts of goals.
const (
	Met     = "met"
	Missed  = "missed"
	Unknown = "not measured"
)

// Goals of memory, in KiB.
const (
	pairRSS  = 6 << 10
	pairAnon = 2 << 10
	manyRSS  = 26 << 10 // 10,000 plain connections
	plainKB  = 2.0      // of a connection
	mtlsKB   = 10.0
	manyConn = 10000
	pairRate = 5000
)

// Ceilings of memory, in KiB, a little above what is reached (docs/memory.md): a program that takes more has grown. Under
// load, what a busy machine makes wait takes room as well.
const (
	pairRSSCeiling  = 7680
	pairAnonCeiling = 5632
)

// idleGoals are of idle connections, each and 10,000 of them.
var idleGoals = []struct {
	peer, state   string
	limit         float64
	ceiling, many float64
}{
	{one, "h2c", plainKB, 2.2, 24.5 * 1024},
	{one, "http1", plainKB, 1.6, 18 * 1024},
	{two, "mtls", mtlsKB, 6.5, 0},
}

const (
	times = "%.3g×"
	micro = "%.0f µs"
	kib   = "%.1f KB"
)

// goals compares what was measured with what is promised.
func (r *Run) goals() []Goal {
	var out []Goal
	for _, w := range r.Workloads {
		out = append(out, r.oneHop(w.Name)...)
	}
	for _, w := range r.Workloads {
		if w.Kind == "cpu" {
			out = append(out, atMost("CPU, "+w.Name+": two hops mTLS to one plaintext HAProxy", 1, times, r.CPURatio(w.Name, two, "haproxy")))
		}
	}
	out = append(out, r.latencyGoals()...)
	out = append(out, r.bulkGoals()...)
	return append(out, r.memoryGoals()...)
}

// oneHop are the goals for the CPU of one hop.
func (r *Run) oneHop(workload string) []Goal {
	switch workload {
	case "h2-c10-m10":
		out := []Goal{
			atLeast("CPU, h2-c10-m10, one hop: HAProxy to Conduit", 2.5, times, r.CPURatio(workload, "haproxy", one)),
			atLeast("CPU, h2-c10-m10, one hop: nghttpx to Conduit", 3, times, r.CPURatio(workload, "nghttpx", one)),
		}
		if f := r.figure(workload, one, "cpu_us"); f != nil {
			out = append(out, atMost("CPU of a request, h2-c10-m10, one hop", 4, "%.1f µs", f.Interval))
		}
		return out
	case "h2-c100-m1", "h1-c50", "h1h2-c50":
		return []Goal{atMost("CPU, "+workload+", one hop: Conduit to HAProxy", 0.8, times, r.CPURatio(workload, one, "haproxy"))}
	}
	return nil
}

func (r *Run) latencyGoals() []Goal {
	var out []Goal
	for _, w := range r.Workloads {
		if w.Kind != "latency" {
			continue
		}
		p99 := percentiles[1].get
		out = append(out,
			atMost("p99 added by two hops mTLS, "+w.Name, 500, micro, r.added(w.Name, two, direct, p99)),
			atMost("p99 of two hops mTLS over one L4 splice, "+w.Name, 200, micro, r.added(w.Name, two, l4, p99)))
	}
	return out
}

func (r *Run) bulkGoals() []Goal {
	var out []Goal
	for _, w := range r.Workloads {
		if w.Kind == "bulk" {
			out = append(out,
				atLeast("throughput, "+w.Name+", one hop: Conduit to the L4 splice", 0.9, times, r.Ratio(w.Name, one, l4, mbsOf)),
				atLeast("throughput, "+w.Name+": two hops mTLS to two crypto/tls ends", 0.8, times, r.Ratio(w.Name, two, "tls-ends", mbsOf)))
		}
	}
	return out
}

// memoryGoals are the goals that need nothing but r.Memory.
func (r *Run) memoryGoals() []Goal {
	var out []Goal
	if m := r.memory(two, "load", 0); m != nil {
		pair := fmt.Sprintf("each proxy of a pair, mTLS, %d requests a second: ", pairRate)
		out = append(out, atMost(pair+"RSS", pairRSS, "%.0f KB", value(m.RSS)).under(pairRSSCeiling, "%.0f KB"),
			atMost(pair+"anonymous", pairAnon, "%.0f KB", value(m.Anon)).under(pairAnonCeiling, "%.0f KB"))
	}
	for _, c := range idleGoals {
		if r.memory(c.peer, c.state, 0) == nil {
			continue
		}
		many := r.memory(c.peer, c.state, manyConn)
		out = append(out, atMost("memory of an idle connection, "+c.state, c.limit, kib, r.perConnection(c.peer, c.state)).under(c.ceiling, kib))
		if c.many > 0 && many != nil {
			subject := fmt.Sprintf("RSS with %d idle connections, %s", manyConn, c.state)
			out = append(out, atMost(subject, manyRSS, "%.0f KB", value(many.RSS)).under(c.many, "%.0f KB"))
		}
	}
	return out
}

// memory is the measurement of that state, if it succeeded.
func (r *Run) memory(peer, state string, connections int) *Memory {
	for i := range r.Memory {
		if m := &r.Memory[i]; m.Peer == peer && m.State == state && m.Connections == connections && m.Error == "" {
			return m
		}
	}
	return nil
}

// perConnection are the KB of an idle connection: between none and the most that were measured.
func (r *Run) perConnection(peer, state string) stats.Interval {
	none := r.memory(peer, state, 0)
	var most *Memory
	for i := range r.Memory {
		m := &r.Memory[i]
		if m.Peer == peer && m.State == state && m.Error == "" && m.Connections > 0 && (most == nil || m.Connections > most.Connections) {
			most = m
		}
	}
	if none == nil || most == nil {
		return stats.Interval{}
	}
	return stats.Estimate([]float64{float64(most.RSS-none.RSS) / float64(most.Connections)})
}

func value(kb int) stats.Interval { return stats.Estimate([]float64{float64(kb)}) }

func atLeast(subject string, limit float64, format string, v stats.Interval) Goal {
	return judge(Goal{Subject: subject, Limit: limit, AtLeast: true, Value: v}, format, v.Median >= limit)
}

func atMost(subject string, limit float64, format string, v stats.Interval) Goal {
	return judge(Goal{Subject: subject, Limit: limit, Value: v}, format, v.Median <= limit)
}

// under gives the goal a ceiling.
func (g Goal) under(ceiling float64, format string) Goal {
	g.Ceiling, g.Most = ceiling, "≤ "+fmt.Sprintf(format, ceiling)
	return g
}

func judge(g Goal, format string, ok bool) Goal {
	sign := "≤ "
	if g.AtLeast {
		sign = "≥ "
	}
	g.Goal = sign + fmt.Sprintf(format, g.Limit)
	switch {
	case g.Value.N == 0:
		g.Verdict, g.Measured = Unknown, "–"
		return g
	case ok:
		g.Verdict = Met
	default:
		g.Verdict = Missed
	}
	g.Measured = fmt.Sprintf(format, g.Value.Median)
	if g.Value.N > 1 {
		g.Measured += fmt.Sprintf(" ("+format+" to "+format+")", g.Value.Low, g.Value.High)
	}
	return g
}
