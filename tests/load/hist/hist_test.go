package hist

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Every quantile is within 1 % of the exact one, whatever the order of magnitude.
func TestQuantilesWithinOnePercent(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var h Histogram
	var exact []time.Duration
	for range 200_000 {
		d := time.Duration(math.Exp(r.Float64()*math.Log(60e9/1e3)) * 1e3) // 1 µs to 60 s, even on a log scale
		h.Record(d)
		exact = append(exact, d)
	}
	slices.Sort(exact)
	for _, q := range []float64{0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999, 1} {
		want := exact[max(0, int(math.Ceil(q*float64(len(exact))))-1)]
		got := h.Quantile(q)
		if e := math.Abs(float64(got)/float64(want) - 1); e > 0.01 {
			t.Errorf("quantile %v: %v instead of %v, off by %.2f %%", q, got, want, 100*e)
		}
	}
	if h.Max() != exact[len(exact)-1] || h.Count() != 200_000 {
		t.Errorf("max %v of %v, count %d", h.Max(), exact[len(exact)-1], h.Count())
	}
}

func TestEveryValueFallsIntoItsBucket(t *testing.T) {
	last := -1
	for ns := int64(Min); ns <= int64(Max); ns += max(1, ns/1000) {
		i := index(ns)
		if i < last || i >= buckets || ns > upper(i) || i > 0 && ns <= upper(i-1) {
			t.Fatalf("%d ns is in bucket %d (%d, %d]", ns, i, upper(i-1), upper(i))
		}
		last = i
	}
}

func TestBeyondTheRange(t *testing.T) {
	var h Histogram
	for _, d := range []time.Duration{-time.Second, 0, 500, 2 * time.Minute} {
		h.Record(d)
	}
	b := h.Buckets()
	if len(b) != 2 || b[0].Count != 3 || b[1].Count != 1 || h.Max() != 2*time.Minute {
		t.Errorf("%v, max %v", b, h.Max())
	}
	if h.Quantile(0.5) > 1010 || h.Quantile(1) < Max {
		t.Errorf("p50 %v, p100 %v", h.Quantile(0.5), h.Quantile(1))
	}
}

func TestEmpty(t *testing.T) {
	var h Histogram
	if h.Quantile(0.99) != 0 || h.Mean() != 0 || h.Max() != 0 || h.Buckets() != nil {
		t.Error("an empty histogram has values")
	}
}
