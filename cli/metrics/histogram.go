package metrics

import (
	"math"
	"slices"
	"strconv"
)

// Histogram counts observations in buckets, by upper bound, cumulatively, as Prometheus does. The zero Histogram is
// empty.
type Histogram struct {
	buckets map[float64]float64
}

// Add adds n observations that are at most le.
func (h *Histogram) Add(le, n float64) {
	if h.buckets == nil {
		h.buckets = map[float64]float64{}
	}
	h.buckets[le] += n
}

// AddLabel is Add with the bound as the text of an le label; it reports whether the text is a bound.
func (h *Histogram) AddLabel(le string, n float64) bool {
	v, err := strconv.ParseFloat(le, 64)
	if err != nil || math.IsNaN(v) {
		return false
	}
	h.Add(v, n)
	return true
}

// Merge adds the observations of o. Both must have the same bounds.
func (h *Histogram) Merge(o Histogram) {
	for le, n := range o.buckets {
		h.Add(le, n)
	}
}

// Count is the number of observations.
func (h *Histogram) Count() float64 {
	n := 0.0
	for _, v := range h.buckets {
		n = max(n, v)
	}
	return n
}

// Quantile estimates the q-quantile (0..1): linear inside a bucket, from 0 in the first, and the highest finite
// bound for what lies above it, as PromQL's histogram_quantile does. It is NaN when nothing was observed.
func (h *Histogram) Quantile(q float64) float64 {
	bounds := make([]float64, 0, len(h.buckets))
	for le := range h.buckets {
		bounds = append(bounds, le)
	}
	slices.Sort(bounds)
	total := h.Count()
	if total == 0 {
		return math.NaN()
	}
	rank := q * total
	lower, below := 0.0, 0.0
	for _, upper := range bounds {
		n := h.buckets[upper]
		if n >= rank && n > below {
			if math.IsInf(upper, 1) {
				return lower
			}
			return lower + (upper-lower)*max(0, rank-below)/(n-below)
		}
		if !math.IsInf(upper, 1) {
			lower = upper
		}
		below = max(below, n)
	}
	return lower
}
