package report

import (
	"math"

	"conduit.io/conduit/tests/bench/stats"
)

// noise is how many times the median direct p99 a round's may be (see stats.Noisy).
const noise = 1.5

// Names that figures are compared by.
const (
	direct = "direct"
	l4     = "l4"
	one    = "conduit"
	two    = "conduit-mesh"
)

// series is a value for each round; NaN where there is none.
type series []float64

// series are what get makes of the samples of a peer in a workload that count.
func (r *Run) series(workload, peer string, get func(*Sample) float64) series {
	out := make(series, r.Settings.Rounds)
	for i := range out {
		out[i] = math.NaN()
	}
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.Workload == workload && s.Peer == peer && s.Error == "" && s.Failed == 0 && s.Round < len(out) {
			out[s.Round] = get(s)
		}
	}
	return out
}

func (s series) without(void []bool) series {
	out := append(series(nil), s...)
	for i := range out {
		if void != nil && void[i] {
			out[i] = math.NaN()
		}
	}
	return out
}

// known are the values that there are.
func (s series) known() []float64 {
	return stats.Pairs(s, s, func(a, _ float64) float64 { return a })
}

func cpuOf(s *Sample) float64 { return s.CPU * 1e6 / float64(s.Completed) }
func rpsOf(s *Sample) float64 { return float64(s.Completed) / s.Seconds }
func mbsOf(s *Sample) float64 { return float64(s.Bytes) / s.Seconds / 1e6 }
func cpuOfMB(s *Sample) float64 {
	return s.CPU * 1e6 / (float64(s.Bytes) / 1e6)
}

// percentiles of a latency sample.
var percentiles = []struct {
	name string
	get  func(*Sample) float64
}{
	{"p50_us", func(s *Sample) float64 { return s.Latency.P50 }},
	{"p99_us", func(s *Sample) float64 { return s.Latency.P99 }},
	{"p999_us", func(s *Sample) float64 { return s.Latency.P999 }},
}

// Derive makes the figures and the goals from the samples.
func (r *Run) Derive() {
	r.Figures = nil
	for _, w := range r.Workloads {
		for _, p := range r.Peers {
			if !r.sampled(w.Name, p.Name) {
				continue
			}
			switch w.Kind {
			case "cpu":
				r.ratio(w, p, "cpu_us", cpuOf)
				r.absolute(w, p, "rps", rpsOf, nil)
			case "bulk":
				r.ratio(w, p, "mb_s", mbsOf)
				r.absolute(w, p, "cpu_us_mb", cpuOfMB, nil)
			case "latency":
				r.latency(w, p)
			}
		}
	}
	r.Goals = r.goals()
}

func (r *Run) sampled(workload, peer string) bool {
	for i := range r.Samples {
		if r.Samples[i].Workload == workload && r.Samples[i].Peer == peer {
			return true
		}
	}
	return false
}

// absolute adds a figure of its own.
func (r *Run) absolute(w Workload, p Peer, metric string, get func(*Sample) float64, void []bool) *Figure {
	v := r.series(w.Name, p.Name, get).without(void).known()
	r.Figures = append(r.Figures, Figure{
		Workload: w.Name, Peer: p.Name, Metric: metric, Interval: stats.Estimate(v), Void: r.Settings.Rounds - len(v),
	})
	return &r.Figures[len(r.Figures)-1]
}

// ratio adds a figure with its ratio to Conduit's.
func (r *Run) ratio(w Workload, p Peer, metric string, get func(*Sample) float64) {
	f := r.absolute(w, p, metric, get, nil)
	ours := one
	if p.Hops == 2 {
		ours = two
	}
	if e := r.Ratio(w.Name, p.Name, ours, get); e.N > 0 && p.Name != ours {
		f.Ratio = &e
	}
}

// Ratio is the median over rounds of a's value by b's, and its interval.
func (r *Run) Ratio(workload, a, b string, get func(*Sample) float64) stats.Interval {
	return stats.Estimate(stats.Pairs(r.series(workload, a, get), r.series(workload, b, get), stats.Ratio))
}

// CPURatio is Ratio of the processor time of a request.
func (r *Run) CPURatio(workload, a, b string) stats.Interval { return r.Ratio(workload, a, b, cpuOf) }

func (r *Run) latency(w Workload, p Peer) {
	void := r.noisy(w.Name)
	for _, q := range percentiles {
		r.absolute(w, p, q.name, q.get, void)
		for _, c := range []struct{ prefix, control string }{{"added_", direct}, {"over_l4_", l4}} {
			if p.Name == direct || p.Name == c.control {
				continue
			}
			if e := r.added(w.Name, p.Name, c.control, q.get); e.N > 0 {
				r.Figures = append(r.Figures, Figure{Workload: w.Name, Peer: p.Name, Metric: c.prefix + q.name, Interval: e, Void: r.Settings.Rounds - e.N})
			}
		}
	}
}

// noisy are the rounds in which even the requests without a proxy were slow.
func (r *Run) noisy(workload string) []bool {
	return stats.Noisy(r.series(workload, direct, percentiles[1].get), noise)
}

// added is by how much the percentile of a peer exceeds the control's in the same round.
func (r *Run) added(workload, peer, control string, get func(*Sample) float64) stats.Interval {
	void := r.noisy(workload)
	a := r.series(workload, peer, get).without(void)
	return stats.Estimate(stats.Pairs(a, r.series(workload, control, get), stats.Difference))
}

// figure is the figure of that name, or nil.
func (r *Run) figure(workload, peer, metric string) *Figure {
	for i := range r.Figures {
		if f := &r.Figures[i]; f.Workload == workload && f.Peer == peer && f.Metric == metric {
			return f
		}
	}
	return nil
}
