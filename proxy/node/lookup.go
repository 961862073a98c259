package node

import (
	"net/netip"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/flow"
)

const (
	// lookupPatience is how long a connection waits to be told who has its destination.
	lookupPatience = time.Second
	// lookupSilence is how long nobody waits for an address any more about which there was no answer.
	lookupSilence = 5 * time.Second
	// lookupIdle is how long an address stays of interest after its last connection.
	lookupIdle = 5 * time.Minute
	// portIdle is the same for a port that turned out to be nobody's, of which a pod may try very many.
	portIdle = 2 * time.Minute
)

// lookup is an address that the agent was asked about.
type lookup struct {
	waiting []*down
	timer   flow.Timer // for those that wait
	silent  int64      // until when nobody waits, by the loop's clock
	used    int64      // when a connection last used it
}

// whole is a as a whole, as it is asked about.
func whole(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a.Unmap(), 0) }

// use notes that a connection uses dst, and returns what the agent is to be asked about it: the address, and, of one that is known
// to be shared, the port, too.
func (sh *shard) use(dst netip.AddrPort) (question netip.AddrPort, l *lookup) {
	question = whole(dst.Addr())
	if l = sh.lookups[question]; l != nil {
		l.used = sh.loop.Now()
	}
	if !sh.n.table.Load().ByPort(dst.Addr()) {
		return question, l
	}
	question = netip.AddrPortFrom(question.Addr(), dst.Port())
	if l = sh.lookups[question]; l != nil {
		l.used = sh.loop.Now()
	}
	return question, l
}

// lookUp asks who has the destination of d, an outbound connection, and reports whether d has to wait for the answer.
func (sh *shard) lookUp(d *down) (waits bool) {
	question, l := sh.use(d.dst)
	if sh.n.table.Load().Covers(d.dst) {
		return false
	}
	if l == nil {
		if l = sh.ask(question, maxInterest); l == nil {
			sh.unanswered(d)
			return true
		}
	}
	if sh.loop.Now() < l.silent {
		sh.unanswered(d)
		return true
	}
	if l.timer == nil {
		l.timer = sh.loop.After(lookupPatience, func() { sh.giveUp(l) })
	}
	l.waiting = append(l.waiting, d)
	d.conn.SetReceiver(ending{sh, d})
	d.conn.Pause()
	return true
}

// notice asks who has a, the address of a client, for whom nobody waits.
func (sh *shard) notice(a netip.Addr) {
	question := whole(a)
	if l := sh.lookups[question]; l != nil {
		l.used = sh.loop.Now()
	} else if !sh.n.table.Load().Covers(question) {
		sh.ask(question, maxInterest/2)
	}
}

// ask is nil when there are too many addresses.
func (sh *shard) ask(a netip.AddrPort, most int) *lookup {
	if !sh.n.interest.hold(a, most) {
		return nil
	}
	l := &lookup{used: sh.loop.Now()}
	sh.lookups[a] = l
	return l
}

// giveUp ends the wait for an answer.
func (sh *shard) giveUp(l *lookup) {
	l.silent = sh.loop.Now() + int64(lookupSilence)
	for _, d := range l.stop() {
		if d.share != nil {
			sh.unanswered(d)
		}
	}
}

// stop returns those that wait, and has them wait no longer.
func (l *lookup) stop() (waiting []*down) {
	if l.timer != nil {
		l.timer.Stop()
	}
	waiting, l.waiting, l.timer = l.waiting, nil, nil
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
