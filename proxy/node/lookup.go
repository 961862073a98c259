package node

import (
	"net/netip"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/flow"
)

const (
	// lookupPatience is how long a connection of an open pod waits to be told who has its destination.
	lookupPatience = time.Second
	// closedPatience is how long one of a closed pod waits, which is refused then: agent and controller may just be replaced.
	closedPatience = 5 * time.Second
	// lookupSilence is how long nobody waits, of open pods, for an address any more about which there was no answer.
	lookupSilence = 5 * time.Second
	// lookupIdle is how long an address stays of interest after its last connection.
	lookupIdle = 5 * time.Minute
	// portIdle is the same for a port that turned out to be nobody's, of which a pod may try very many.
	portIdle = 2 * time.Minute
)

// lookup is an address that the agent was asked about.
type lookup struct {
	waiting map[*down]flow.Timer // until they give up
	silent  int64                // until when open pods do not wait, by the loop's clock
	used    int64                // when a connection last used it
}

// whole is a as a whole, as it is asked about.
func whole(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a.Unmap(), 0) }

// questions are what the agent is to be asked about dst: the address, and, of one that is known to be shared, the port, too.
func (sh *shard) questions(dst netip.AddrPort) [2]netip.AddrPort {
	a := whole(dst.Addr())
	if !sh.n.table.Load().ByPort(dst.Addr()) {
		return [...]netip.AddrPort{a, a}
	}
	return [...]netip.AddrPort{a, netip.AddrPortFrom(a.Addr(), dst.Port())}
}

// use notes that a connection uses dst.
func (sh *shard) use(dst netip.AddrPort) {
	for _, q := range sh.questions(dst) {
		if l := sh.lookups[q]; l != nil {
			l.used = sh.loop.Now()
		}
	}
}

// lookUp asks who has the destination of d, an outbound connection, and reports whether d has to wait for the answer. What is known is asked
// for as well: the next agent is to know it, too.
func (sh *shard) lookUp(d *down) (waits bool) {
	t := sh.n.table.Load()
	var l *lookup // of the last question
	for _, q := range sh.questions(d.dst) {
		if l = sh.lookups[q]; l != nil {
			l.used = sh.loop.Now()
		} else if t.OnDemand() {
			l = sh.ask(q, maxInterest)
		}
	}
	if t.Covers(d.dst) {
		return false
	}
	closed := d.share.pod.record().Down != mesh.DownOpen
	if l == nil || !closed && sh.loop.Now() < l.silent {
		sh.unanswered(d)
		return true
	}
	patience := lookupPatience
	if closed {
		patience = closedPatience
	}
	l.waiting[d] = sh.loop.After(patience, func() { sh.giveUp(l, d) })
	d.conn.SetReceiver(ending{sh, d})
	d.conn.Pause()
	return true
}

// notice asks who has a, the address of a client, for whom nobody waits.
func (sh *shard) notice(a netip.Addr) {
	question := whole(a)
	if l := sh.lookups[question]; l != nil {
		l.used = sh.loop.Now()
	} else if sh.n.table.Load().OnDemand() {
		sh.ask(question, maxInterest/2)
	}
}

// ask is nil when there are too many addresses.
func (sh *shard) ask(a netip.AddrPort, most int) *lookup {
	if !sh.n.interest.hold(a, most) {
		return nil
	}
	l := &lookup{waiting: map[*down]flow.Timer{}, used: sh.loop.Now()}
	sh.lookups[a] = l
	return l
}

// giveUp ends d's wait for an answer.
func (sh *shard) giveUp(l *lookup, d *down) {
	delete(l.waiting, d)
	l.silent = sh.loop.Now() + int64(lookupSilence)
	if d.share != nil {
		sh.unanswered(d)
	}
}

// stop returns those that wait, and has them wait no longer.
func (l *lookup) stop() (waiting []*down) {
	for d, timer := range l.waiting {
		timer.Stop()
		waiting = append(waiting, d)
	}
	clear(l.waiting)
	return waiting
}

// unanswered serves d as if its destination were outside the mesh, unless its pod is closed: then it is refused, for the
// destination may be one that wants mTLS.
func (sh *shard) unanswered(d *down) {
	sh.n.process.Unresolved.Add(1)
	if d.share.pod.record().Down != mesh.DownOpen {
		sh.refuse(d, mesh.ReasonUnresolved)
		return
	}
	sh.serveOutbound(d)
	d.conn.Resume()
}

// answered serves the connections whose destinations the new snapshot has. Those whose address turns out to be shared wait on, for
// what is said of the port.
func (sh *shard) answered() {
	t := sh.n.table.Load()
	for question, l := range sh.lookups {
		if !t.Covers(question) {
			continue
		}
		l.silent = 0
		for _, d := range l.stop() {
			if d.share != nil && !sh.lookUp(d) {
				sh.serveOutbound(d)
				d.conn.Resume()
			}
		}
	}
}

// forget gives up the interest in addresses that no connection has used for a while.
func (sh *shard) forget() {
	now := sh.loop.Now()
	for _, s := range sh.shares {
		s.each(func(d *down) {
			if d.kind == outbound {
				sh.use(d.dst)
			} else if l := sh.lookups[whole(d.client.Addr())]; l != nil {
				l.used = now
			}
		})
	}
	t := sh.n.table.Load()
	for a, l := range sh.lookups {
		idle := lookupIdle
		if p, _ := t.Service(a); p == nil && a.Port() != 0 {
			idle = portIdle
		}
		if len(l.waiting) == 0 && now-l.used > int64(idle) {
			delete(sh.lookups, a)
			sh.n.interest.release(a)
		}
	}
}
