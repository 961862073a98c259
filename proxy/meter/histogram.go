package meter

import (
	"math"
	"math/bits"
	"time"
)

// maxBuckets is how many buckets a histogram has room for, that of +Inf included.
const maxBuckets = 32

// scale is the upper bounds of a histogram's buckets.
type scale struct {
	ms     []float64
	le     []string          // the bounds as text, +Inf included
	bounds [maxBuckets]int64 // nanoseconds; those after the last are without end
	first  [64]uint8         // by the length of a number in bits: the first bucket that it may be in
}

// latencyScale has three digits a decade where people look.
var latencyScale = newScale(
	0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 2, 3, 4, 5, 7, 10, 20, 30, 40, 50, 70, 100, 200, 300, 400, 500,
	1000, 2000, 3000, 5000, 10000, 20000, 50000,
)

func newScale(ms ...float64) *scale {
	s := &scale{ms: ms}
	for _, v := range ms {
		s.le = append(s.le, number(v))
	}
	s.le = append(s.le, "+Inf")
	for i := range s.bounds {
		s.bounds[i] = math.MaxInt64
		if i < len(ms) {
			s.bounds[i] = int64(ms[i] * float64(time.Millisecond))
		}
	}
	for l := range s.first {
		least := int64(0)
		if l > 0 {
			least = 1 << (l - 1)
		}
		s.first[l] = uint8(s.search(0, least))
	}
	return s
}

func (s *scale) search(from int, n int64) int {
	for n > s.bounds[from%maxBuckets] {
		from++
	}
	return from
}

// bucket is the bucket that n, which is not negative, falls into: at most three comparisons, because no power of two
// holds more bounds.
func (s *scale) bucket(n int64) int {
	return s.search(int(s.first[bits.Len64(uint64(n))%64]), n)
}

// histogram counts durations in the buckets of a scale. The zero histogram is empty.
type histogram struct {
	sum  uint64 // nanoseconds
	n    [maxBuckets]uint32
	high *[maxBuckets]uint32 // overflows of n, once there are any
}

func (h *histogram) add(s *scale, nanos int64) {
	nanos = max(nanos, 0)
	h.sum += uint64(nanos)
	i := s.bucket(nanos) % maxBuckets
	if h.n[i]++; h.n[i] == 0 {
		if h.high == nil {
			h.high = new([maxBuckets]uint32)
		}
		h.high[i]++
	}
}

// at is how many durations bucket i has.
func (h *histogram) at(i int) uint64 {
	n := uint64(h.n[i])
	if h.high != nil {
		n += uint64(h.high[i]) << 32
	}
	return n
}

// copy is a copy that shares nothing; of nil, nil.
func (h *histogram) copy() *histogram {
	if h == nil {
		return nil
	}
	c := *h
	if h.high != nil {
		high := *h.high
		c.high = &high
	}
	return &c
}
