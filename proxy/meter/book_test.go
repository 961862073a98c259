package meter

import (
	"testing"
	"time"

	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/loop"
)

// clockwork is a loop whose clock the test sets, in microseconds.
type clockwork struct {
	now, time int64
	flush     []loop.Flusher
}

func (c *clockwork) Now() int64           { return c.now * 1000 }
func (c *clockwork) Time() int64          { return c.time * 1000 }
func (c *clockwork) AtEnd(f loop.Flusher) { c.flush = append(c.flush, f) }
func (c *clockwork) Flush()               { c.time += 7 } // a connection writes
func (c *clockwork) batch(at int64, f func()) { // which takes 10 µs, and 7 more to write
	c.now, c.time = at, at+10
	f()
	c.AtEnd(c)
	for len(c.flush) > 0 {
		round := c.flush
		c.flush = nil
		for _, x := range round {
			x.Flush()
		}
	}
}

// wantParts checks sums, in microseconds; what is not named must not have been measured.
func wantParts(t *testing.T, r *Requests, latency int64, want map[Part]int64) {
	t.Helper()
	var all int64
	for p, h := range r.parts {
		w, measured := want[Part(p)]
		if (h != nil) != measured {
			t.Errorf("part %d: measured %v, want %v", p, h != nil, measured)
			continue
		}
		if h == nil {
			continue
		}
		got := int64(h.sum / 1000)
		if got != w {
			t.Errorf("part %d: %d µs, want %d", p, got, w)
		}
		if Part(p) <= Response {
			all += got
		}
	}
	if got := int64(r.latency.sum / 1000); got != latency || all != latency {
		t.Errorf("latency %d µs, the parts add up to %d, want %d", got, all, latency)
	}
}

func us(n int64) int64 { return n * 1000 }

func TestParts(t *testing.T) {
	const batch = 17 // µs, until everything is written
	for name, c := range map[string]struct {
		run     func(b *Book, l *clockwork, r *Requests, sp *Span)
		latency int64
		want    map[Part]int64
	}{
		"at once": {func(b *Book, l *clockwork, r *Requests, sp *Span) {
			l.batch(100, func() { b.Sent(sp) })
			l.batch(1000, func() {
				b.Ended(r, sp, &exchange.Stream{Start: us(100), ReqEnd: us(100), FirstByte: us(1000), End: us(1000)}, NewOutcome(false, 0, "", ""))
			})
		}, 900 + batch, map[Part]int64{Proxy: 2 * batch, Upstream: 900 - batch}},
		"after a dial, and a queue": {func(b *Book, l *clockwork, r *Requests, sp *Span) {
			l.batch(400, func() { sp.Dialled(200 * time.Microsecond); b.Sent(sp) })
			l.batch(1000, func() {
				b.Ended(r, sp, &exchange.Stream{Start: us(100), ReqEnd: us(400), FirstByte: us(1000), End: us(1000)}, NewOutcome(false, 0, "", ""))
			})
		}, 900 + batch, map[Part]int64{Queue: 100, Connect: 200, Proxy: 2 * batch, Upstream: 600 - batch}},
		"an upload, then a download": {func(b *Book, l *clockwork, r *Requests, sp *Span) {
			l.batch(100, func() { b.Sent(sp) })
			l.batch(5000, func() {
				b.Ended(r, sp, &exchange.Stream{Start: us(100), ReqEnd: us(2000), FirstByte: us(3000), End: us(5000)}, NewOutcome(false, 0, "", ""))
			})
		}, 4900 + batch, map[Part]int64{Proxy: 2 * batch, Request: 1900 - batch, Upstream: 1000, Response: 2000}},
		"answered before the request's end": {func(b *Book, l *clockwork, r *Requests, sp *Span) {
			l.batch(100, func() { b.Sent(sp) })
			l.batch(5000, func() {
				b.Ended(r, sp, &exchange.Stream{Start: us(100), ReqEnd: us(4000), FirstByte: us(3000), End: us(5000)}, NewOutcome(false, 0, "", ""))
			})
		}, 4900 + batch, map[Part]int64{Proxy: 2 * batch, Upstream: 2900 - batch, Response: 2000}},
		"sent twice": {func(b *Book, l *clockwork, r *Requests, sp *Span) {
			l.batch(100, func() { b.Sent(sp) })
			l.batch(600, func() { b.Sent(sp) }) // the first upstream had answered at 500 that it could not be reached
			l.batch(1000, func() {
				b.Ended(r, sp, &exchange.Stream{Start: us(100), ReqEnd: us(600), FirstByte: us(1000), End: us(1000)}, NewOutcome(false, 0, "", ""))
			})
		}, 900 + batch, map[Part]int64{Queue: 500, Proxy: 2 * batch, Upstream: 400 - batch}},
		"never sent": {func(b *Book, l *clockwork, r *Requests, sp *Span) {
			l.batch(1000, func() {
				sp.Dialled(900 * time.Microsecond)
				b.Ended(r, sp, &exchange.Stream{Start: us(100), End: us(1000)}, NewOutcome(false, 0, "", ""))
			})
		}, 900 + batch, map[Part]int64{Connect: 900, Proxy: batch}},
		"answered by nobody": {func(b *Book, l *clockwork, r *Requests, sp *Span) {
			l.batch(100, func() { b.Sent(sp) })
			l.batch(1000, func() {
				b.Ended(r, sp, &exchange.Stream{Start: us(100), ReqEnd: us(100), FirstByte: 0, End: us(1000)}, NewOutcome(false, 0, "", ""))
			})
		}, 900 + batch, map[Part]int64{Proxy: 2 * batch, Upstream: 900 - batch}},
		"refused at once": {func(b *Book, l *clockwork, r *Requests, sp *Span) {
			l.batch(100, func() { b.Ended(r, sp, &exchange.Stream{Start: us(100), End: us(100)}, NewOutcome(false, 0, "", "")) })
		}, batch, map[Part]int64{Proxy: batch}},
		"sent and lost in one batch": {func(b *Book, l *clockwork, r *Requests, sp *Span) {
			l.batch(100, func() {
				b.Sent(sp)
				b.Ended(r, sp, &exchange.Stream{Start: us(100), ReqEnd: us(100), FirstByte: 0, End: us(100)}, NewOutcome(false, 0, "", ""))
			})
		}, batch, map[Part]int64{Proxy: batch, Upstream: 0}},
	} {
		t.Run(name, func(t *testing.T) {
			l := &clockwork{}
			r := NewSet(1).Requests(requestKey, 0)
			r.Begin()
			c.run(NewBook(l), l, r, &Span{})
			wantParts(t, r, c.latency, c.want)
			if r.busy != 0 {
				t.Errorf("%d requests under way", r.busy)
			}
		})
	}
}

// What the other proxy says of itself is believed as far as it is possible.
func TestLinked(t *testing.T) {
	for _, c := range []struct{ answer, there, app, network, peer, application int64 }{
		{1000, 700, 600, 300, 100, 600},
		{1000, 2000, 3000, 0, 0, 1000},
		{1000, -5, 100, 1000, 0, 0},
	} {
		r := &Requests{}
		r.Linked(c.answer, c.there, c.app)
		got := [3]int64{int64(r.parts[Network].sum), int64(r.parts[Peer].sum), int64(r.parts[Application].sum)}
		if got != [3]int64{c.network, c.peer, c.application} {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func BenchmarkBook(b *testing.B) {
	const batch = 32
	l := &clockwork{}
	book := NewBook(l)
	r := NewSet(10).Requests(requestKey, 0)
	spans := make([]Span, batch)
	o := NewOutcome(true, 200, "", "")
	b.ReportAllocs()
	for i := range b.N {
		at := int64(i+1) * 1000
		sp := &spans[i%batch]
		r.Begin()
		r.Started()
		book.Sent(sp)
		if i%batch == batch-1 {
			book.called = true
			book.Flush()
			for j := range spans {
				book.Ended(r, &spans[j], &exchange.Stream{Start: at, ReqEnd: at, FirstByte: at + 500, End: at + 500}, o)
			}
			book.called = true
			book.Flush()
			l.flush = l.flush[:0]
		}
	}
}
