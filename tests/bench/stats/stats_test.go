package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		in   []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 2, 9}, 3},
	} {
		in := slices.Clone(tc.in)
		if got := Median(in); got != tc.want {
			t.Errorf("Median(%v) = %v, want %v", tc.in, got, tc.want)
		}
		if !slices.Equal(in, tc.in) {
			t.Errorf("Median changed its argument to %v", in)
		}
	}
	if got := Median(nil); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestPairsCancelWhatRoundsHaveInCommon(t *testing.T) {
	nan := math.NaN()
	// Round 2 was four times as slow for both, in round 3 one has no value, in round 4 the other one.
	a, b := []float64{20, 80, nan, 30, 22}, []float64{10, 40, 10, nan, 10}
	if got := Pairs(a, b, Ratio); !slices.Equal(got, []float64{2, 2, 2.2}) {
		t.Errorf("ratios %v", got)
	}
	if got := Pairs(a, b, Difference); !slices.Equal(got, []float64{10, 40, 12}) {
		t.Errorf("differences %v", got)
	}
	if got := Pairs([]float64{1, 2}, []float64{0, 1}, Ratio); !slices.Equal(got, []float64{2}) {
		t.Errorf("a ratio to nothing is kept: %v", got)
	}
}

func TestEstimate(t *testing.T) {
	if got := Estimate(nil); got != (Interval{}) {
		t.Errorf("%+v from nothing", got)
	}
	if got, want := Estimate([]float64{7}), (Interval{7, 7, 7, 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	v := []float64{1.9, 2.1, 2.0, 2.2, 1.8, 2.05, 1.95, 9, 2.0, 2.1}
	got := Estimate(v)
	if got != Estimate(v) {
		t.Error("the same values give another interval")
	}
	if got.Median != 2.025 || got.N != 10 {
		t.Errorf("%+v", got)
	}
	if !(got.Low >= 1.9 && got.Low < got.Median && got.High > got.Median && got.High <= 2.2) {
		t.Errorf("one outlier of ten moves the interval: %+v", got)
	}
}

// The interval holds the true median about as often as it says.
func TestEstimateCovers(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const trials = 300
	held := 0
	for range trials {
		v := make([]float64, 15)
		for i := range v {
			v[i] = 10 + rng.NormFloat64()
		}
		if e := Estimate(v); e.Low <= 10 && 10 <= e.High {
			held++
		}
	}
	if held < trials*88/100 || held > trials*995/1000 {
		t.Errorf("the true median was inside %d times of %d", held, trials)
	}
}

func TestNoisy(t *testing.T) {
	nan := math.NaN()
	got := Noisy([]float64{100, 149, 151, 90, nan, 100, 100}, 1.5)
	if want := []bool{false, false, true, false, true, false, false}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := Noisy([]float64{nan, nan}, 1.5); !slices.Equal(got, []bool{true, true}) {
		t.Errorf("without any control %v", got)
	}
}
