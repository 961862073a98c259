package meter

import (
	"time"

	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/loop"
)

// Book keeps the times of a shard's requests. The clock of a loop stands still during a batch, which may take longer than
// an answer does; so the Book looks at the true time once, when everything of the batch has been written, and charges
// that time to the requests that were in it. The resolution of every figure is therefore one batch. What it does not
// see is how long bytes lay in the kernel while the batch before was at work.
type Book struct {
	loop   Loop
	sent   []*Span
	ended  []last
	called bool // by the loop, for the first time
}

// Loop is what a Book needs of a loop.Loop.
type Loop interface {
	Now() int64
	Time() int64
	AtEnd(f loop.Flusher)
}

// Span is what a Book knows of a request under way. The zero Span is that of one which was not sent on.
type Span struct {
	sent    int64 // start of the batch that sent it on, the last time
	written int64 // end of that batch
	connect int64 // how long dials took before that
}

// last is a request that ended in this batch: what was known before its end.
type last struct {
	r              *Requests
	latency, proxy int64
}

// NewBook makes a Book for what happens on l. It is used on l's goroutine.
func NewBook(l Loop) *Book { return &Book{loop: l} }

// Sent notes that a request is sent on in this batch. sp stays where it is until the end of the batch.
func (b *Book) Sent(sp *Span) {
	sp.sent, sp.written = b.loop.Now(), 0
	b.sent = append(b.sent, sp)
	b.arm()
}

// Dialled adds to the time that the request has waited for dials.
func (sp *Span) Dialled(d time.Duration) { sp.connect += int64(d) }

// Dials is how long the request has waited for dials.
func (sp *Span) Dials() time.Duration { return time.Duration(sp.connect) }

// upstream is when the upstream had the whole request, and when its answer began, or was not waited for any longer.
func (sp *Span) upstream(s *exchange.Stream) (from, until int64) {
	from, until = max(sp.sent, sp.written), s.FirstByte
	if until < from {
		until = s.End // there was no answer, or only one to an earlier attempt
	}
	if s.ReqEnd > from && s.ReqEnd <= until {
		from = s.ReqEnd
	}
	return from, until
}

// Answer is how long the upstream took from the end of the request to the first byte of the response, which has just
// come.
func (sp *Span) Answer(s *exchange.Stream) int64 {
	from, until := sp.upstream(s)
	return until - from
}

// Ended counts the end of a request on r, and where its time went. It takes r's Begin back.
func (b *Book) Ended(r *Requests, sp *Span, s *exchange.Stream, o Outcome) {
	r.busy--
	r.used = s.End
	r.ended.add(o)
	proxy := int64(0)
	if sp.sent == 0 {
		r.wait(s.End-s.Start, sp.connect)
	} else {
		r.wait(sp.sent-s.Start, sp.connect)
		head := sp.sent
		if sp.written != 0 {
			head = sp.written
			proxy = head - sp.sent
		}
		from, until := sp.upstream(s)
		if from > head {
			r.parts.add(Request, from-head)
		}
		r.parts.add(Upstream, until-from)
		if s.End > until {
			r.parts.add(Response, s.End-until)
		}
	}
	b.ended = append(b.ended, last{r, s.End - s.Start, proxy})
	b.arm()
}

// wait counts what went before a request was sent on.
func (r *Requests) wait(all, connect int64) {
	if connect > 0 {
		connect = min(connect, all)
		r.parts.add(Connect, connect)
	}
	if all > connect {
		r.parts.add(Queue, all-connect)
	}
}

// arm makes the loop call at the end of the batch.
func (b *Book) arm() {
	if len(b.sent)+len(b.ended) == 1 {
		b.called = false
		b.loop.AtEnd(b)
	}
}

// Flush implements loop.Flusher. It puts itself off once, behind the connections that are flushed in this round.
func (b *Book) Flush() {
	if !b.called {
		b.called = true
		b.loop.AtEnd(b)
		return
	}
	end := b.loop.Time()
	for i, sp := range b.sent {
		sp.written = end
		b.sent[i] = nil
	}
	took := end - b.loop.Now()
	for i := range b.ended {
		x := &b.ended[i]
		x.r.latency.add(latencyScale, x.latency+took)
		x.r.parts.add(Proxy, x.proxy+took)
		x.r = nil
	}
	b.sent, b.ended = b.sent[:0], b.ended[:0]
}
