// Package stats turns noisy samples into figures with their uncertainty: medians over rounds, and bootstrap intervals.
package stats

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Interval is an estimate with its 95 % confidence interval. N is how many values it was made from; 0 means that there
// is no estimate.
type Interval struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	N      int     `json:"n"`
}

// resamples is how often the bootstrap draws: the bounds then repeat to about 1 % of the interval.
const resamples = 4000

// Median is the middle of v, or the mean of the two in the middle; NaN for none. It leaves v as it is.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	return medianOf(slices.Clone(v))
}

// medianOf sorts v.
func medianOf(v []float64) float64 {
	slices.Sort(v)
	m := len(v) / 2
	if len(v)%2 == 1 {
		return v[m]
	}
	return (v[m-1] + v[m]) / 2
}

// Estimate is the median of v and its percentile bootstrap interval (Efron 1979). The same values give the same
// interval: the generator's seed is fixed, so that a report can be made again from its samples.
func Estimate(v []float64) Interval {
	if len(v) == 0 {
		return Interval{}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	medians := make([]float64, resamples)
	draw := make([]float64, len(v))
	for i := range medians {
		for j := range draw {
			draw[j] = v[rng.IntN(len(v))]
		}
		medians[i] = medianOf(draw)
	}
	slices.Sort(medians)
	return Interval{
		Median: Median(v), N: len(v),
		Low: medians[resamples*25/1000], High: medians[resamples*975/1000-1],
	}
}

// Pairs combines what two targets reached in the same round, where both have a value: the noise that a round has in
// common cancels out. A value that is NaN is none.
func Pairs(a, b []float64, combine func(a, b float64) float64) []float64 {
	var out []float64
	for i := range min(len(a), len(b)) {
		if c := combine(a[i], b[i]); !math.IsNaN(c) && !math.IsInf(c, 0) {
			out = append(out, c)
		}
	}
	return out
}

// Ratio and Difference are what Pairs combines with.
func Ratio(a, b float64) float64 { return a / b }

// Difference is a less b.
func Difference(a, b float64) float64 { return a - b }

// Noisy marks the rounds whose control exceeds factor times the median control. A round without control (NaN) is
// noisy as well: nothing can be said about it.
func Noisy(control []float64, factor float64) []bool {
	known := slices.DeleteFunc(slices.Clone(control), math.IsNaN)
	limit := factor * Median(known)
	out := make([]bool, len(control))
	for i, c := range control {
		out[i] = !(c <= limit)
	}
	return out
}
