package drive

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"conduit.io/conduit/tests/load/engine"
)

// dial opens the connection of a slot.
func (r *runner) dial(slot int) {
	l := &link{r: r, slot: slot}
	r.slots[slot] = l
	var err error
	if l.conn, err = r.loop.Dial(r.cfg.Target, l); err != nil {
		r.unreachable(l, err)
	}
}

// unreachable is called for a connection that could not be opened.
func (r *runner) unreachable(l *link, err error) {
	if !r.started {
		if r.err == nil {
			r.abort(fmt.Errorf("connect to %s: %w", r.cfg.Target, err))
		}
		return
	}
	r.res.DialErrors++
	r.res.note(fmt.Sprintf("not connected: %v", err))
	r.loop.Set(r.loop.NewTimer(func() {
		if !r.stopped || r.waiting.len() > 0 {
			r.dial(l.slot)
		}
	}), engine.Now()+int64(redialAfter))
}

// replace opens a connection in the slot of one that takes no more requests.
func (r *runner) replace(l *link) {
	if l.replaced {
		return
	}
	l.replaced = true
	if !r.started {
		r.unreachable(l, errors.New("the target ended the connection"))
		return
	}
	if len(l.live) > 0 {
		r.gone[l] = struct{}{}
	}
	if !r.stopped || r.waiting.len() > 0 {
		r.dial(l.slot)
	}
}

// churn replaces one connection.
func (r *runner) churn() {
	l := r.slots[r.churned%len(r.slots)]
	if l.usable && !l.replaced {
		l.drain()
		r.replace(l)
	}
	r.churned++
	r.loop.Set(r.churner, r.start+int64(float64(r.churned+1)*float64(time.Second)/r.cfg.Churn))
}

// send starts a request that was to start at intended.
func (r *runner) send(l *link, intended, now int64) {
	q := r.free
	if q == nil {
		q = &request{}
	} else {
		r.free = q.next
	}
	*q = request{link: l, intended: intended, sent: now}
	r.live++
	r.res.Sent++
	if now-intended > int64(lateAfter) {
		r.res.Late++
	}
	l.start(q)
}

// complete ends a request whose answer has come, good or bad.
func (r *runner) complete(q *request) {
	if reason := r.judge(q); reason != "" {
		r.fail(q, reason)
		return
	}
	r.last = engine.Now()
	r.hist.Record(time.Duration(r.last - q.intended))
	r.res.Completed++
	r.release(q)
}

// judge is what is wrong with an answer, and why, where a mesh has given it; "" for a good one.
func (r *runner) judge(q *request) string {
	fault := r.fault(q)
	if fault != "" && q.reason != "" {
		fault += "-" + q.reason
	}
	return fault
}

func (r *runner) fault(q *request) string {
	cfg := r.cfg
	switch {
	case q.status != cfg.Status:
		return fmt.Sprintf("status-%d", q.status)
	case cfg.Protocol == GRPC && q.grpc == "" || cfg.Trailer != "" && !q.trailer:
		return "missing-trailer"
	case cfg.Protocol == GRPC && q.grpc != "0":
		return "grpc-status-" + q.grpc
	case cfg.Expect >= 0 && q.got < cfg.Expect:
		return "short-body"
	case cfg.Expect >= 0 && q.got > cfg.Expect:
		return "long-body"
	}
	return ""
}

// fail ends a request that has no good answer.
func (r *runner) fail(q *request, reason string) {
	r.last = engine.Now()
	r.res.Failed++
	r.res.Failures[reason]++
	r.res.note(reason)
	r.release(q)
}

// again puts a request back that the target has not processed.
func (r *runner) again(q *request) {
	r.res.Retried++
	r.res.Sent--
	r.waiting.push(q.intended)
	r.release(q)
}

// release ends q, and gives its connection another request.
func (r *runner) release(q *request) {
	l := q.link
	l.remove(q)
	r.live--
	q.link, q.next, r.free = nil, r.free, q
	if l.draining && len(l.live) == 0 {
		l.close()
	}
	r.offer(l)
	r.dispatch()
	r.maybeDone()
}

// lost is the reason for which requests fail on a connection that has ended.
func lost(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection-reset"
	case errors.Is(err, engine.ErrEOF):
		return "connection-closed"
	case errors.Is(err, errProtocol):
		return "protocol-error"
	}
	return "connection-broken"
}

// sweep fails what has taken too long.
func (r *runner) sweep() {
	now := engine.Now()
	for r.waiting.len() > 0 && now-r.waiting.peek() > int64(r.cfg.Timeout) {
		r.waiting.pop()
		r.res.Failed++
		r.res.Failures["unsent"]++
		r.res.note("unsent")
		r.last = now
	}
	for _, l := range r.slots {
		l.sweep(now)
	}
	for l := range r.gone {
		if len(l.live) == 0 {
			delete(r.gone, l)
		}
		l.sweep(now)
	}
	if r.cfg.Report != nil {
		r.cfg.Report(&r.res)
	}
	r.loop.Set(r.sweeper, now+int64(sweepEvery))
	r.maybeDone()
}
