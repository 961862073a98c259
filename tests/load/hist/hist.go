// Package hist is a histogram of latencies with logarithmic buckets: fixed memory, and an error below 1 % over the whole
// range from 1 µs to 60 s.
package hist

import (
	"math"
	"math/bits"
	"time"
)

const (
	subBits = 7 // 128 buckets for each power of two: a bucket is at most 0.8 % wide
	sub     = 1 << subBits
	minBits = 9 // the smallest value, 1000 ns, lies in [2^9, 2^10)
	// Min and Max bound what is told apart: values beyond are counted as if they were these.
	Min = time.Microsecond
	Max = 60 * time.Second
)

var buckets = index(int64(Max)) + 1

// Histogram counts durations. The zero value is empty. It is not safe for concurrent use.
type Histogram struct {
	counts []uint64
	total  uint64
	sum    float64
	max    int64
}

// index is the bucket of ns.
func index(ns int64) int {
	e := bits.Len64(uint64(ns)) - 1
	return (e-minBits)<<subBits + int(ns>>(e-subBits))&(sub-1)
}

// upper is the largest value that bucket i counts.
func upper(i int) int64 {
	e := i>>subBits + minBits
	return int64(sub+i&(sub-1)+1)<<(e-subBits) - 1
}

// Record counts d.
func (h *Histogram) Record(d time.Duration) {
	if h.counts == nil {
		h.counts = make([]uint64, buckets)
	}
	ns := int64(max(Min, min(Max, d)))
	h.counts[index(ns)]++
	h.total++
	h.sum += float64(d)
	h.max = max(h.max, int64(d))
}

// Count is how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.total }

// Max is the longest duration, exactly.
func (h *Histogram) Max() time.Duration { return time.Duration(h.max) }

// Mean is the average, exactly; 0 when nothing was recorded.
func (h *Histogram) Mean() time.Duration {
	if h.total == 0 {
		return 0
	}
	return time.Duration(h.sum / float64(h.total))
}

// Quantile is the duration that the share q (0 to 1) of the recorded ones do not exceed; 0 when nothing was recorded.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := max(1, uint64(math.Ceil(q*float64(h.total))))
	seen := uint64(0)
	for i, n := range h.counts {
		if seen += n; n > 0 && seen >= rank {
			return time.Duration(min(upper(i), h.max))
		}
	}
	return 0
}

// Bucket is how many durations were counted that are at most Upper, and longer than the Upper of the bucket before.
type Bucket struct {
	Upper time.Duration
	Count uint64
}

// Buckets is what was counted, ascending, without empty buckets.
func (h *Histogram) Buckets() []Bucket {
	var out []Bucket
	for i, n := range h.counts {
		if n > 0 {
			out = append(out, Bucket{time.Duration(upper(i)), n})
		}
	}
	return out
}
