package meter

import (
	"bytes"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"
)

func dstKey(dst string) Key {
	return Key{Direction: Outbound, Src: "x", Dst: dst, Protocol: HTTP1, TLS: None, Route: DefaultRoute}
}

func TestSeriesAreBounded(t *testing.T) {
	s := NewSet(2)
	for _, dst := range []string{"a", "b", "c", "d", "a"} {
		s.Requests(dstKey(dst), 0).Started()
	}
	wantLines(t, text(s),
		`request_total{direction="outbound",src="x",dst="a",protocol="http1",tls="none",route="default"} 2`,
		`request_total{direction="outbound",src="other",dst="other",protocol="http1",tls="none",route="other"} 2`,
		"conduit_series_dropped_total 2",
		"conduit_series_expired_total 0",
	)
	if n := len(s.Read(now).requests); n != 3 {
		t.Errorf("%d series", n)
	}
}

// A series that nothing has used for long goes, unless something is still under way in it. Whoever holds it learns that it
// must look again.
func TestSeriesExpire(t *testing.T) {
	s := NewSet(10)
	idle, busy, used := s.Requests(dstKey("idle"), 0), s.Requests(dstKey("busy"), 0), s.Requests(dstKey("used"), 0)
	busy.Begin()
	open := s.Conns(connKey, 0)
	open.Opened()
	end(used, expiry/2, 0, NewOutcome(false, 0, "", ""))
	s.Sweep(int64(expiry) - 1)
	if idle.Gone() {
		t.Error("gone before its time")
	}
	s.Sweep(int64(expiry))
	if !idle.Gone() || busy.Gone() || used.Gone() || open.Gone() {
		t.Errorf("gone: idle %v, busy %v, used %v, open %v", idle.Gone(), busy.Gone(), used.Gone(), open.Gone())
	}
	busy.Leave()
	end(busy, expiry, 0, NewOutcome(false, 0, "", ""))
	open.Closed(int64(expiry), "")
	s.Sweep(3 * int64(expiry))
	wantLines(t, text(s), "conduit_series_expired_total 4")
	if r := s.Read(now); len(r.requests)+len(r.conns) != 0 {
		t.Errorf("%d + %d series are left", len(r.requests), len(r.conns))
	}
	if again := s.Requests(dstKey("idle"), 0); again == idle || again.Gone() {
		t.Error("looked up again, and it is the one that is gone")
	}
}

// At the bound the least recently used series make room, but not those of traffic that is there.
func TestLeastRecentlyUsedMakesRoom(t *testing.T) {
	const bound = 32
	s := NewSet(bound)
	all := make([]*Requests, bound)
	for i := range all {
		all[i] = s.Requests(dstKey(strconv.Itoa(i)), 0)
		end(all[i], time.Duration(i), 0, NewOutcome(false, 0, "", ""))
	}
	late := int64(spare) + bound/2 // the latter half is in use
	fresh := s.Requests(dstKey("new"), late)
	if fresh.Gone() {
		t.Fatal("no room was made")
	}
	for i, r := range all {
		if want := i <= bound/16; r.Gone() != want {
			t.Errorf("series %d: gone %v", i, r.Gone())
		}
	}
	for i := range bound { // more than there is room for: those beyond are counted as other, and the old ones stay
		end(s.Requests(dstKey("more"+strconv.Itoa(i)), late), time.Duration(late), 0, NewOutcome(false, 0, "", ""))
	}
	for i := bound / 2; i < bound; i++ {
		if all[i].Gone() {
			t.Errorf("series %d, which is in use, is gone", i)
		}
	}
	got := text(s)
	wantLines(t, got, "conduit_series_expired_total 3", "conduit_series_dropped_total 30")
	if n := strings.Count(got, "request_total{"); n != bound+1 {
		t.Errorf("%d series, want %d and one for the rest", n, bound)
	}
}

// A reader meets every series once, whatever happens between two portions.
func TestReadWhileSeriesComeAndGo(t *testing.T) {
	s := NewSet(10 * portion)
	for i := range 5 * portion {
		s.Requests(dstKey(strconv.Itoa(i)), int64(i%2)*int64(expiry)).Started()
	}
	calls := 0
	r := s.Read(func(f func()) error {
		f()
		if calls++; calls == 2 {
			s.Sweep(int64(expiry))
			for i := range portion {
				s.Requests(dstKey("new"+strconv.Itoa(i)), int64(expiry))
			}
		}
		return nil
	})
	seen := map[string]int{}
	for _, x := range r.requests {
		seen[x.key.Dst]++
	}
	for i := range 5 * portion {
		if dst := strconv.Itoa(i); seen[dst] > 1 || i%2 == 1 && seen[dst] != 1 {
			t.Errorf("series %s was met %d times", dst, seen[dst])
		}
	}
	if calls < 5 {
		t.Errorf("read in %d portions", calls)
	}
}

// The look-up of a bucket finds what a search from the first one finds.
func TestBuckets(t *testing.T) {
	s := latencyScale
	for i := range 200_000 {
		n := rand.Int64N(1 << (i % 62))
		switch i % 4 {
		case 0:
			n = s.bounds[i%len(s.ms)]
		case 1:
			n = s.bounds[i%len(s.ms)] + 1
		}
		if got, want := s.bucket(n), s.search(0, n); got != want {
			t.Fatalf("%d ns: bucket %d, want %d", n, got, want)
		}
	}
	for _, n := range []int64{0, 1, math.MaxInt64} {
		if got, want := s.bucket(n), s.search(0, n); got != want {
			t.Errorf("%d ns: bucket %d, want %d", n, got, want)
		}
	}
}

func TestHistogramBeyond32Bits(t *testing.T) {
	h := histogram{}
	h.n[0] = math.MaxUint32
	h.add(latencyScale, 1)
	h.add(latencyScale, 1)
	c := h.copy()
	h.add(latencyScale, 1)
	if h.at(0) != math.MaxUint32+3 || c.at(0) != math.MaxUint32+2 {
		t.Errorf("%d, its copy %d", h.at(0), c.at(0))
	}
}

// BenchmarkSeries says what a series costs in memory, with the place in the tables that it takes.
func BenchmarkSeries(b *testing.B) {
	keys := make([]Key, b.N)
	for i := range keys {
		keys[i] = dstKey(strconv.Itoa(i))
	}
	s := NewSet(math.MaxInt)
	b.ReportAllocs()
	b.ResetTimer()
	for _, k := range keys {
		end(s.Requests(k, 0), 0, 0, NewOutcome(true, 200, "", ""))
	}
	b.ReportMetric(float64(unsafe.Sizeof(Requests{})), "B/struct")
}

// BenchmarkWrite is a scrape: 200 series of requests that went to other proxies, with the parts that such ones have.
func BenchmarkWrite(b *testing.B) {
	s := NewSet(math.MaxInt)
	for i := range 200 {
		r := s.Requests(dstKey(strconv.Itoa(i)), 0)
		end(r, 0, time.Millisecond, NewOutcome(true, 200, "", ""))
		r.parts.add(Upstream, 1000)
		r.Linked(1000, 500, 400)
		k := r.key
		k.Route = ""
		s.Conns(k, 0).Opened()
	}
	b.ReportAllocs()
	size := 0
	for range b.N {
		var out bytes.Buffer
		Write(&out, &Process{}, s.Read(now))
		size = out.Len()
	}
	b.ReportMetric(float64(size)/200, "B/series")
}
