// Package pool keeps connections to one upstream and gives streams a place on them: HTTP/2 connections shared by many
// streams, HTTP/1.1 connections used by one at a time. A Pool belongs to one shard loop; nothing locks.
package pool

import (
	"errors"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/h1"
	"conduit.io/conduit/proxy/h2"
)

// retryAfter is how long no connection is dialled after the process had no descriptor or port for one, or no time for its
// handshake. Streams wait for the connections that there are.
const retryAfter = 50 * time.Millisecond

// The causes that a Ticket may be given beside those of the Dialer.
var (
	ErrFull    = errors.New("too many streams wait for a connection")
	ErrTimeout = errors.New("no connection took the stream in time")
	ErrClosed  = errors.New("the pool is closed")
)

// Dialed is the outcome of a dial: Conn and Protocol (HTTP1 or HTTP2), or Reason and Err.
type Dialed struct {
	Conn     flow.Conn
	Protocol mesh.Protocol
	Internal bool // the handshake has shown that the peer is another proxy, if Options.Internal does not say so
	// Lease, if set, makes a timer that calls f when the connection should take no more streams.
	Lease  func(f func()) flow.Timer
	Reason mesh.Reason
	Err    error
}

// Options configure a Pool.
type Options struct {
	Clock   flow.Clock
	Streams *exchange.Pool // the shard's
	// Dial opens a connection and calls done on the loop, later, unless cancel was called.
	Dial func(done func(Dialed)) (cancel func())
	// Protocol is what Dial will give: HTTP1, HTTP2, or Detect when a handshake decides.
	Protocol mesh.Protocol
	// Internal as in exchange.ClientOptions.
	Internal   bool
	MaxConns   int           // connections, those being dialled included
	MaxWaiting int           // streams that wait for one
	Wait       time.Duration // how long a stream waits
	// OnViolation as in exchange.ClientOptions.
	OnViolation func(v exchange.Violation)
	// Lacking, if set, is called when a dial failed for want of something here (mesh.ReasonOverload). It may make others give up
	// what they do not need, and reports whether they have.
	Lacking func(err error) bool
	// OnLost, if set, is called with the error that a connection has ended with.
	OnLost func(err error)
	// OnConns, if set, is called when the number of open connections changes, with the difference.
	OnConns func(delta int)
}

// Pool is the connections to one upstream.
type Pool struct {
	o       Options
	members map[*member]struct{}
	ready   []*member // a stack: the most recently used first, so that the others become idle
	dials   map[*dial]struct{}
	waiting []*Ticket
	live    int    // tickets in waiting that were not cancelled
	streams uint32 // what the server allows on a connection, if it has said so
	single  bool   // one stream a connection
	short   bool   // the last dial failed for want of something here: one at a time
	retry   flow.Timer
	closed  bool
}

type member struct {
	u               exchange.Upstream
	served          uint64     // at the last Sweep
	dialled, opened int64      // when it was begun to dial, and when it was open
	lease           flow.Timer // nil: none
	ready           bool
	gone            bool
}

type dial struct {
	cancel func()
	since  int64
}

// Ticket is a stream's wait for a connection.
type Ticket struct {
	f     func(g Grant)
	timer flow.Timer
	pool  *Pool
	since int64
}

// Grant is the end of a wait: Up, over which the stream must be forwarded at once, or Reason and Err.
type Grant struct {
	Up     exchange.Upstream
	Reason mesh.Reason
	Err    error
	// Dial is how long, within the wait, the connection was dialled and shook hands, or failed to.
	Dial time.Duration
}

// New makes an empty Pool.
func New(o Options) *Pool {
	return &Pool{
		o: o, single: o.Protocol == mesh.HTTP1,
		members: make(map[*member]struct{}), dials: make(map[*dial]struct{}),
	}
}

// Get is a connection with room, or nil. The caller must Forward a stream over it before anything else.
func (p *Pool) Get() exchange.Upstream {
	if m := p.top(); m != nil {
		return m.u
	}
	return nil
}

func (p *Pool) top() *member {
	for n := len(p.ready); n > 0; n = len(p.ready) {
		m := p.ready[n-1]
		if !m.gone && m.u.Room() > 0 {
			return m
		}
		m.ready = false
		p.ready[n-1] = nil
		p.ready = p.ready[:n-1]
	}
	return nil
}

// Wait calls f as soon as a connection has room, which it dials if need be, or with the reason why there is none. f
// runs before Wait returns, or later; not after Cancel.
func (p *Pool) Wait(f func(g Grant)) *Ticket {
	t := &Ticket{f: f, pool: p, since: p.o.Clock.Now()}
	switch {
	case p.closed:
		t.deliver(Grant{Reason: mesh.ReasonDraining, Err: ErrClosed})
		return t
	case p.live >= p.o.MaxWaiting:
		t.deliver(Grant{Reason: mesh.ReasonOverload, Err: ErrFull})
		return t
	}
	t.timer = p.o.Clock.After(p.o.Wait, func() { t.expire() })
	p.waiting = append(p.waiting, t)
	p.live++
	p.pump()
	return t
}

// Cancel withdraws the ticket; harmless when it has been served.
func (t *Ticket) Cancel() {
	if t.f == nil {
		return
	}
	t.f = nil
	t.timer.Stop()
	t.pool.live--
	t.pool.trim()
}

func (t *Ticket) expire() {
	f := t.f
	t.Cancel()
	switch {
	case f == nil:
	case len(t.pool.members) > 0: // they are all busy
		f(Grant{Reason: mesh.ReasonOverload, Err: ErrTimeout})
	default:
		f(Grant{Reason: mesh.ReasonConnectTimeout, Err: ErrTimeout})
	}
}

func (t *Ticket) deliver(g Grant) {
	f := t.f
	t.f = nil
	if t.timer != nil {
		t.timer.Stop()
	}
	f(g)
}

// within is how much of the time from one moment to another the ticket has waited.
func (t *Ticket) within(from, until int64) time.Duration {
	return time.Duration(max(until-max(from, t.since), 0))
}

// trim drops withdrawn tickets when they are most of the queue.
func (p *Pool) trim() {
	if p.live > 0 && len(p.waiting) < 2*p.live+16 {
		return
	}
	kept := p.waiting[:0]
	for _, t := range p.waiting {
		if t.f != nil {
			kept = append(kept, t)
		}
	}
	clear(p.waiting[len(kept):])
	p.waiting = kept
}

// next takes the oldest ticket off the queue.
func (p *Pool) next() *Ticket {
	for len(p.waiting) > 0 {
		t := p.waiting[0]
		p.waiting[0] = nil
		p.waiting = p.waiting[1:]
		if t.f != nil {
			p.live--
			return t
		}
	}
	p.waiting = nil
	return nil
}

// pump serves who waits, and dials for who then still waits.
func (p *Pool) pump() {
	for p.live > 0 {
		m := p.top()
		if m == nil {
			break
		}
		t := p.next()
		t.deliver(Grant{Up: m.u, Dial: t.within(m.dialled, m.opened)})
	}
	for !p.closed && p.retry == nil && p.live > 0 && len(p.members)+len(p.dials) < p.o.MaxConns {
		if len(p.dials) >= p.live || (!p.single || p.short) && len(p.dials) > 0 {
			return
		}
		p.dial()
	}
}

func (p *Pool) dial() {
	d := &dial{since: p.o.Clock.Now()}
	p.dials[d] = struct{}{}
	d.cancel = p.o.Dial(func(r Dialed) {
		delete(p.dials, d)
		switch {
		case r.Err == nil && p.closed:
			r.Conn.Abort()
		case r.Err == nil:
			p.short = false
			p.add(r, d.since)
			p.pump()
		case r.Reason == mesh.ReasonOverload && (p.spared(r.Err) || len(p.members)+len(p.dials) > 0):
			p.rest()
		default:
			p.failed(r, d.since)
		}
	})
}

func (p *Pool) spared(err error) bool { return p.o.Lacking != nil && p.o.Lacking(err) }

// rest dials nothing for a while.
func (p *Pool) rest() {
	p.short = true
	if p.retry == nil && !p.closed {
		p.retry = p.o.Clock.After(retryAfter, func() {
			p.retry = nil
			p.pump()
		})
	}
}

// failed tells who waited for the dial: the oldest, when each stream needs its own connection, else all.
func (p *Pool) failed(r Dialed, since int64) {
	n := p.live
	if p.single {
		n = min(n, 1)
	}
	for range n {
		if t := p.next(); t != nil {
			t.deliver(Grant{Reason: r.Reason, Err: r.Err, Dial: t.within(since, p.o.Clock.Now())})
		}
	}
	p.pump()
}

func (p *Pool) add(r Dialed, since int64) {
	m := &member{dialled: since, opened: p.o.Clock.Now()}
	o := exchange.ClientOptions{
		Clock: p.o.Clock, Pool: p.o.Streams, Internal: p.o.Internal || r.Internal, Streams: &p.streams, OnViolation: p.o.OnViolation,
		OnChange: func(_ exchange.Upstream, ended bool, err error) { p.changed(m, ended, err) },
	}
	p.members[m] = struct{}{}
	p.count(1)
	if r.Protocol == mesh.HTTP1 {
		p.single = true
		m.u = h1.NewClient(r.Conn, o)
	} else {
		m.u = h2.NewClient(r.Conn, o)
	}
	if r.Lease != nil {
		m.lease = r.Lease(m.u.Drain)
	}
	p.push(m)
}

func (p *Pool) changed(m *member, ended bool, err error) {
	if ended {
		if !m.gone {
			if p.o.OnLost != nil && err != nil {
				p.o.OnLost(err)
			}
			m.gone = true
			if m.lease != nil {
				m.lease.Stop()
			}
			delete(p.members, m)
			p.count(-1)
		}
	} else {
		p.push(m)
	}
	p.pump()
}

func (p *Pool) push(m *member) {
	if m.u != nil && !m.ready && !m.gone {
		m.ready = true
		p.ready = append(p.ready, m)
	}
}

func (p *Pool) count(delta int) {
	if p.o.OnConns != nil {
		p.o.OnConns(delta)
	}
}

// Sweep closes the connections that carried nothing since the last Sweep.
func (p *Pool) Sweep() {
	for m := range p.members {
		if n := m.u.Served(); n != m.served || m.u.Active() > 0 {
			m.served = n
			continue
		}
		m.u.Close()
	}
}

// Spare closes the connections that carry nothing now, and reports whether there were any.
func (p *Pool) Spare() (some bool) {
	for m := range p.members {
		if m.u.Active() == 0 {
			some = true
			m.u.Close()
		}
	}
	return some
}

// Active is how many streams are on the pool's connections or wait for one.
func (p *Pool) Active() int {
	n := p.live
	for m := range p.members {
		n += m.u.Active()
	}
	return n
}

// Empty reports whether the pool has neither connections nor anybody who waits.
func (p *Pool) Empty() bool { return len(p.members)+len(p.dials)+p.live == 0 }

// Closed reports whether Close or Drain was called: nothing new may be asked of the pool.
func (p *Pool) Closed() bool { return p.closed }

// Drain lets active streams finish; who waits is turned away.
func (p *Pool) Drain() { p.end(func(u exchange.Upstream) { u.Drain() }) }

// Close resets every stream and closes the connections.
func (p *Pool) Close() { p.end(func(u exchange.Upstream) { u.Close() }) }

func (p *Pool) end(f func(exchange.Upstream)) {
	p.closed = true
	if p.retry != nil {
		p.retry.Stop()
	}
	for d := range p.dials {
		delete(p.dials, d)
		if d.cancel != nil {
			d.cancel()
		}
	}
	for t := p.next(); t != nil; t = p.next() {
		t.deliver(Grant{Reason: mesh.ReasonDraining, Err: ErrClosed})
	}
	for m := range p.members {
		f(m.u)
	}
}
