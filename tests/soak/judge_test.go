package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

// series is 720 samples, as a run of two hours makes them.
func series(f func(i int, r *rand.Rand) float64) []point {
	r := rand.New(rand.NewPCG(7, 7))
	ps := make([]point, 720)
	for i := range ps {
		ps[i] = point{float64(i) * 10, f(i, r)}
	}
	return ps
}

func TestJudgeGrowth(t *testing.T) {
	noise := func(r *rand.Rand, amount float64) float64 { return amount * r.NormFloat64() }
	rss, fds := &quantities[0], &quantities[3]
	for _, tc := range []struct {
		name string
		q    *quantity
		ps   []point
		want bool
	}{
		{"flat", rss, series(func(int, *rand.Rand) float64 { return 6000 }), false},
		{"noisy", rss, series(func(_ int, r *rand.Rand) float64 { return 6000 + noise(r, 800) }), false},
		{"spikes at the end", rss, series(func(i int, r *rand.Rand) float64 {
			if i > 650 && i%5 == 0 {
				return 20000
			}
			return 6000 + noise(r, 100)
		}), false},
		{"warms up, then flat", rss, series(func(i int, r *rand.Rand) float64 { return 8000 - 3000*math.Exp(-float64(i)/60) + noise(r, 200) }), false},
		{"saw teeth of the collector", rss, series(func(i int, r *rand.Rand) float64 { return 6000 + float64(i%40)*30 + noise(r, 50) }), false},
		{"leaks 2 MiB in two hours", rss, series(func(i int, r *rand.Rand) float64 { return 6000 + 4*float64(i) + noise(r, 300) }), true},
		{"leaks in steps", rss, series(func(i int, r *rand.Rand) float64 { return 6000 + 500*float64(i/100) + noise(r, 100) }), true},
		{"leaks after an hour", rss, series(func(i int, r *rand.Rand) float64 { return 6000 + max(0, 8*float64(i-300)) + noise(r, 300) }), true},
		{"descriptors vary", fds, series(func(_ int, r *rand.Rand) float64 { return math.Round(80 + noise(r, 15)) }), false},
		{"one descriptor a minute", fds, series(func(i int, r *rand.Rand) float64 { return math.Round(80 + float64(i)/6 + noise(r, 15)) }), true},
	} {
		growth, got, err := tc.q.grew(tc.ps)
		if err != nil || got != tc.want {
			t.Errorf("%s: grew %v (%.0f), %v", tc.name, got, growth, err)
		}
	}
}

// A series without a trend is not taken for a leak, however often the dice are thrown.
func TestJudgeSeldomErrs(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	wrong := 0
	for range 300 {
		ps := make([]point, 40)
		for i := range ps {
			ps[i] = point{float64(i), 6000 + 2000*r.NormFloat64()}
		}
		if _, bad, _ := quantities[0].grew(ps); bad {
			wrong++
		}
	}
	if wrong > 2 {
		t.Errorf("%d of 300 flat series are called growing", wrong)
	}
}

func TestJudgeNeedsSamples(t *testing.T) {
	if _, _, err := quantities[0].grew(make([]point, 2*minPoints-2)); err == nil {
		t.Error("a handful of samples is judged")
	}
}

func TestJudgeRest(t *testing.T) {
	before := reading{RSS: 4000, Anon: 1000, Goroutines: 7, Files: 10}
	if f := judgeRest("client", before, reading{RSS: 9000, Anon: 5000, Goroutines: 8, Files: 12}); len(f) > 0 {
		t.Errorf("%v", f)
	}
	after := reading{Goroutines: 10, Files: 14, Connections: 1, Opaque: 1, Streams: 1}
	if f := judgeRest("client", before, after); len(f) != 5 {
		t.Errorf("%d faults instead of 5: %v", len(f), f)
	}
}

func TestJudgeReadsSamples(t *testing.T) {
	var all []sample
	for i := range 100 {
		r := reading{RSS: 6000, Goroutines: 10 + float64(i)}
		all = append(all, sample{Phase: "load", Seconds: float64(i), Proxies: map[string]reading{"client": r}})
	}
	if lines, faults := judgeGrowth("client", all); len(faults) != 1 || len(lines) != len(quantities) {
		t.Errorf("%v of %v", faults, lines)
	}
}

func TestSums(t *testing.T) {
	m := sums([]byte("# HELP a b 3\n# TYPE a counter\na{x=\"1 2\"} 3\na{x=\"2\"} 4\nb 0.5\n"))
	if len(m) != 2 || m["a"] != 7 || m["b"] != 0.5 {
		t.Errorf("%v", m)
	}
}
