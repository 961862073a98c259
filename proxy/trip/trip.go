// Package trip is what a proxied stream needs on its way, whoever decides where it goes: a place on a connection, the
// chance to be sent again, and an account of where its time went and how it ended. A Trip belongs to one shard loop.
package trip

import (
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/front"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/pool"

	"golang.org/x/net/http2/hpack"
)

const (
	// MaxAttempts is how often a stream is sent before it fails.
	MaxAttempts = 3
	// ClientFirst is how long a client that is likely to speak HTTP is waited for: long enough for a client to write, too
	// short to matter where a server speaks first after all.
	ClientFirst = 50 * time.Millisecond
)

// Owner is who decides where a stream goes.
type Owner interface {
	// Stranded says that the stream got no connection. The owner sends it elsewhere, or calls Fail.
	Stranded(reason mesh.Reason, detail string)
}

// Trip is one stream's way, from Handler.Request to Handler.Done. The zero Trip, or one that has had its Done, is made
// ready by Begin.
type Trip struct {
	S        *exchange.Stream
	Tunnel   bool // bytes, not HTTP
	GRPC     bool
	FromLink bool // it came over another proxy
	Attempts int

	desk     *Desk
	owner    Owner
	requests *meter.Requests
	started  bool // it is counted as a request
	span     meter.Span
	ticket   *pool.Ticket // what it waits for
	cancel   func()       // likewise: a dial, or a timer
	limited  limited
}

// Begin starts the trip of s.
func (t *Trip) Begin(d *Desk, s *exchange.Stream, owner Owner) {
	t.S, t.desk, t.owner = s, d, owner
	t.Tunnel, t.GRPC = s.Req.Major == 0, false
	if !t.Tunnel {
		t.GRPC = s.Req.GRPC()
	}
	t.FromLink, t.Attempts, t.started = false, 0, false
	t.span = meter.Span{}
}

// Protocol is how metrics name what the stream carries.
func (t *Trip) Protocol() meter.Protocol {
	switch {
	case t.Tunnel:
		return meter.TCP
	case t.GRPC:
		return meter.GRPC
	case t.S.Req.Major == 2:
		return meter.HTTP2
	}
	return meter.HTTP1
}

// Unsupported is why no proxy carries the request; empty: it does. What a CONNECT asks for, a tunnel to a host of the
// client's choice (RFC 9110, 9.3.6), is not for a mesh to give.
func (t *Trip) Unsupported() string {
	if !t.Tunnel && t.S.Req.Method == "CONNECT" && t.S.Req.Protocol == "" {
		return "CONNECT is not supported here"
	}
	return ""
}

// CountOn says which series the request is to be counted in, when it has an answer or has ended. The last word counts.
func (t *Trip) CountOn(r *meter.Requests) {
	r.Begin()
	if t.requests != nil {
		t.requests.Leave()
	}
	t.requests = r
}

// Over sends the stream on over a connection of p, now or when there is one.
func (t *Trip) Over(p *pool.Pool, extra []hpack.HeaderField) {
	if u := p.Get(); u != nil {
		t.send(u, extra)
		return
	}
	waited := false
	ticket := p.Wait(func(g pool.Grant) {
		waited = true
		t.ticket = nil
		t.span.Dialled(g.Dial)
		if g.Err != nil {
			t.owner.Stranded(g.Reason, g.Err.Error())
			return
		}
		t.send(g.Up, extra)
	})
	if !waited { // else t may be somebody else's by now
		t.ticket = ticket
	}
}

func (t *Trip) send(u exchange.Upstream, extra []hpack.HeaderField) {
	t.desk.Book.Sent(&t.span)
	t.S.Forward(u, extra)
}

// Dial carries a tunnel over a connection of its own. start begins to connect, and returns how to stop; done is called
// later, on the loop, with the connection or the reason why there is none.
func (t *Trip) Dial(start func(done func(u exchange.Upstream, reason mesh.Reason, err error)) (cancel func())) {
	since := t.desk.Loop.Now()
	t.cancel = start(func(u exchange.Upstream, reason mesh.Reason, err error) {
		t.cancel = nil
		t.span.Dialled(time.Duration(t.desk.Loop.Now() - since))
		if err != nil {
			t.owner.Stranded(reason, err.Error())
			return
		}
		t.S.Forward(u, nil)
	})
}

// MayRetry reports whether a stream whose upstream connection was lost may be sent again: what certainly was not begun,
// and what may be repeated by its nature (RFC 9110, 9.2.2).
func (t *Trip) MayRetry() bool {
	return t.Attempts < MaxAttempts && (t.S.Unprocessed || !t.Tunnel && t.S.Req.Idempotent())
}

// Fail answers with a failure of the mesh. A client that may yet turn out to speak HTTP, by f, is given the time to do so,
// because then it can be told why; an opaque connection can only be reset. f is nil where that is certain. The stream may have
// ended on return.
func (t *Trip) Fail(f *front.Front, status int, reason mesh.Reason, detail string) {
	if t.Tunnel && f != nil && f.Undecided() {
		t.cancel = t.desk.Loop.After(ClientFirst, func() { t.cancel = nil; t.fail(status, reason, detail) }).Stop
		return
	}
	t.fail(status, reason, detail)
}

func (t *Trip) fail(status int, reason mesh.Reason, detail string) {
	if t.Tunnel && !t.FromLink {
		t.desk.Process.ConnectionFailed(reason)
	}
	t.S.Fail(status, reason, detail)
}

// Answered is to be called when the response's head is there.
func (t *Trip) Answered() {
	t.start()
	t.readNote()
}

// start counts the request, once.
func (t *Trip) start() {
	if !t.started && t.requests != nil {
		t.started = true
		t.requests.Started()
	}
}

// Dialled is how long dials for the stream took.
func (t *Trip) Dialled() time.Duration { return t.span.Dials() }

// Done ends the trip: nothing is waited for any more, and a request is counted.
func (t *Trip) Done() {
	if t.limited.next != nil {
		t.desk.limits().remove(&t.limited.entry)
	}
	if t.ticket != nil {
		t.ticket.Cancel()
		t.ticket = nil
	}
	if t.cancel != nil {
		t.cancel()
		t.cancel = nil
	}
	if t.requests == nil {
		return
	}
	t.start()
	t.desk.Book.Ended(t.requests, &t.span, t.S, t.outcome())
	t.requests = nil
}

func (t *Trip) outcome() meter.Outcome {
	s := t.S
	status, reason := 0, s.Reason
	if s.Res != nil {
		status = s.Res.Status
		if reason == mesh.ReasonNone && (t.GRPC || status >= 300) {
			reason = theirs(s)
		}
	}
	ok := s.Res != nil && reason == mesh.ReasonNone && status < 500
	if !t.GRPC {
		return meter.NewOutcome(ok, status, "", reason)
	}
	// A call that its client gave up is nobody's failure, unless the time that the server was given had passed.
	gaveUp := reason == mesh.ReasonDownstreamReset
	code := s.GRPCStatus()
	switch {
	case code != "":
		ok = (ok || gaveUp) && meter.GRPCOK(code)
	case s.Res != nil && reason == mesh.ReasonNone && s.Req.GRPCWeb() && !s.Res.GRPC():
		// An answer in another format, which says all in its HTTP status.
	case t.late():
		code, ok = deadlineExceeded, false
	case gaveUp:
		code, ok = cancelled, true
	default:
		ok = false
	}
	return meter.NewOutcome(ok, status, code, reason)
}

const (
	cancelled        = "1"
	deadlineExceeded = "4"
	// deadlineSlack is how long before its deadline, as it is seen here, a call may have ended because of it: the client's
	// clock started earlier.
	deadlineSlack = 20 * time.Millisecond
)

// late reports whether a call has used up the time that its client gave it.
func (t *Trip) late() bool {
	d, ok := grpcTimeout(t.S.Req.Get("grpc-timeout"))
	return ok && time.Duration(t.S.End-t.S.Start) >= d-min(d/10, deadlineSlack)
}

// theirs is another proxy's reason, which nobody else can have put there: in its response, or in trailers if the response
// had begun when it failed.
func theirs(s *exchange.Stream) mesh.Reason {
	for i := range s.Trailers {
		if s.Trailers[i].Name == mesh.ReasonHeader {
			return mesh.Reason(s.Trailers[i].Value)
		}
	}
	return mesh.Reason(s.Res.Get(mesh.ReasonHeader))
}
