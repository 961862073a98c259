package drive

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"conduit.io/conduit/tests/load/hist"
)

// Result is what became of a load. Latencies are of completed requests: in an open loop from the time at which they
// were to start, so that a stalled target is not spared the requests that it kept from being sent.
type Result struct {
	Sent      uint64            `json:"sent"`
	Completed uint64            `json:"completed"`
	Failed    uint64            `json:"failed"`
	Failures  map[string]uint64 `json:"failures"` // by reason
	// Late counts requests that left more than 1 ms after they were to.
	Late uint64 `json:"late"`
	// Retried counts requests sent again because GOAWAY left them unprocessed; they count as sent once.
	Retried uint64 `json:"retried"`
	// DialErrors counts connections that could not be replaced at once.
	DialErrors uint64 `json:"dial_errors"`
	// Trouble says when something failed, and what: the first cases of each.
	Trouble   []string    `json:"trouble,omitempty"`
	Seconds   float64     `json:"duration_s"`
	RPS       float64     `json:"rps"`
	Latency   Latency     `json:"latency_us"`
	BytesIn   uint64      `json:"bytes_in"`
	BytesOut  uint64      `json:"bytes_out"`
	Histogram [][2]uint64 `json:"histogram"` // upper bound in µs, count
}

// Latency are microseconds.
type Latency struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
	Mean float64 `json:"mean"`
}

// maxTrouble bounds Result.Trouble.
const maxTrouble = 100

// note remembers what failed just now.
func (r *Result) note(what string) {
	if len(r.Trouble) < maxTrouble {
		r.Trouble = append(r.Trouble, time.Now().UTC().Format("15:04:05.000 ")+what)
	}
}

func us(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func (r *Result) finish(h *hist.Histogram, took time.Duration) {
	r.Seconds = took.Seconds()
	if took > 0 {
		r.RPS = float64(r.Completed) / r.Seconds
	}
	r.Latency = Latency{us(h.Quantile(0.5)), us(h.Quantile(0.9)), us(h.Quantile(0.99)), us(h.Quantile(0.999)), us(h.Max()), us(h.Mean())}
	r.Histogram = [][2]uint64{}
	for _, b := range h.Buckets() {
		upper := uint64((b.Upper + time.Microsecond - 1) / time.Microsecond)
		if n := len(r.Histogram); n > 0 && r.Histogram[n-1][0] == upper {
			r.Histogram[n-1][1] += b.Count // below 128 µs, buckets are narrower than 1 µs
			continue
		}
		r.Histogram = append(r.Histogram, [2]uint64{upper, b.Count})
	}
}

// Table writes r for people.
func (r *Result) Table(w io.Writer) {
	fmt.Fprintf(w, "requests   %d sent, %d completed, %d failed, %d late, in %.2f s: %.0f/s\n",
		r.Sent, r.Completed, r.Failed, r.Late, r.Seconds, r.RPS)
	l := &r.Latency
	fmt.Fprintf(w, "latency    p50 %.0f  p90 %.0f  p99 %.0f  p99.9 %.0f  max %.0f  mean %.0f µs\n", l.P50, l.P90, l.P99, l.P999, l.Max, l.Mean)
	fmt.Fprintf(w, "bytes      %d in, %d out\n", r.BytesIn, r.BytesOut)
	reasons := slices.SortedFunc(maps.Keys(r.Failures), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.Failures[b], r.Failures[a]), cmp.Compare(a, b))
	})
	for _, reason := range reasons {
		fmt.Fprintf(w, "failed     %d %s\n", r.Failures[reason], reason)
	}
	if r.Retried+r.DialErrors > 0 {
		fmt.Fprintf(w, "sent again %d after GOAWAY; %d connections could not be replaced at once\n", r.Retried, r.DialErrors)
	}
}
