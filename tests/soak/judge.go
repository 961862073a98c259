package main

import (
	"fmt"
	"math"
	"slices"
)

// A quantity grows when, over the second half of the load, its Theil-Sen slope (the median of the slopes between all
// pairs of points, which a few odd ones do not move) has brought more than the limit below, and when it rose so steadily
// that chance would not do it once in 3000 times (Mann-Kendall). The first half is for caches and buffers to fill.
const certain = 3.4 // standard deviations

// quantity is something that must not grow.
type quantity struct {
	name  string
	unit  string
	get   func(reading) float64
	floor float64 // growth that is forgiven ...
	share float64 // ... or this share of the median, if that is more
	rest  float64 // by how much it may exceed, when idle again, what it was before the load; -1: not compared
}

// Memory does not return to what it was: the heap keeps what it once needed. That it does not go on growing is what counts.
var quantities = []quantity{
	{"RSS", " KiB", func(r reading) float64 { return r.RSS }, 1024, 0.05, -1},
	{"anonymous RSS", " KiB", func(r reading) float64 { return r.Anon }, 1024, 0.05, -1},
	{"goroutines", "", func(r reading) float64 { return r.Goroutines }, 5, 0.1, 2},
	{"descriptors", "", func(r reading) float64 { return r.Files }, 10, 0.1, 3},
	{"connections", "", func(r reading) float64 { return r.Connections }, 10, 0.1, 0},
	{"TCP connections", "", func(r reading) float64 { return r.Opaque }, 10, 0.1, 0},
	{"streams", "", func(r reading) float64 { return r.Streams }, 10, 0.1, 0},
}

type point struct{ t, v float64 }

// minPoints is how many points a judgement needs.
const minPoints = 8

// grew reports by how much a series has grown in its second half, and whether that is too much.
func (q *quantity) grew(all []point) (growth float64, tooMuch bool, err error) {
	half := all[len(all)/2:]
	if len(half) < minPoints {
		return 0, false, fmt.Errorf("%d samples are too few to judge: run for longer", len(all))
	}
	values := make([]float64, len(half))
	for i, p := range half {
		values[i] = p.v
	}
	growth = theilSen(half) * (half[len(half)-1].t - half[0].t)
	limit := max(q.floor, q.share*median(values))
	return growth, growth > limit && mannKendall(values) > certain, nil
}

// theilSen is the median of the slopes between all pairs of points.
func theilSen(ps []point) float64 {
	var slopes []float64
	for i, a := range ps {
		for _, b := range ps[i+1:] {
			if b.t > a.t {
				slopes = append(slopes, (b.v-a.v)/(b.t-a.t))
			}
		}
	}
	return median(slopes)
}

// mannKendall is by how many standard deviations more pairs rise than fall, compared with a series without a trend.
func mannKendall(v []float64) float64 {
	s := 0.0
	for i, a := range v {
		for _, b := range v[i+1:] {
			switch {
			case b > a:
				s++
			case b < a:
				s--
			}
		}
	}
	n := float64(len(v))
	return (s - math.Copysign(1, s)) / math.Sqrt(n*(n-1)*(2*n+5)/18)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// judgeGrowth says what of a proxy grew during the load; "" of each that is well.
func judgeGrowth(name string, samples []sample) (lines, faults []string) {
	for i := range quantities {
		q := &quantities[i]
		var ps []point
		for _, s := range samples {
			if s.Phase == "load" {
				ps = append(ps, point{s.Seconds, q.get(s.Proxies[name])})
			}
		}
		growth, tooMuch, err := q.grew(ps)
		if err != nil {
			return lines, []string{err.Error()}
		}
		line := fmt.Sprintf("%s proxy: %s %+.0f%s in the second half, from %.0f to %.0f", name, q.name, growth, q.unit, ps[len(ps)/2].v, ps[len(ps)-1].v)
		lines = append(lines, line)
		if tooMuch {
			faults = append(faults, line)
		}
	}
	return lines, faults
}

// judgeRest says what a proxy has not given back.
func judgeRest(name string, before, after reading) (faults []string) {
	for i := range quantities {
		q := &quantities[i]
		if b, a := q.get(before), q.get(after); q.rest >= 0 && a > b+q.rest {
			faults = append(faults, fmt.Sprintf("%s proxy: %s %.0f when idle again, %.0f before the load", name, q.name, a, b))
		}
	}
	return faults
}
