package node

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/balance"
	"conduit.io/conduit/proxy/detect"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/shed"
	"conduit.io/conduit/proxy/sock"
	"conduit.io/conduit/proxy/trip"

	"golang.org/x/sys/unix"
)

const (
	// sweepEvery closes upstream connections that were idle from one sweep to the next: after 30 to 60 s.
	sweepEvery = 30 * time.Second
	// drainEvery is how often a leaving pod is looked at.
	drainEvery = 100 * time.Millisecond
	// plaintextGrace is how long HTTP in plaintext may go on after a pod has become STRICT.
	plaintextGrace = 5 * time.Second
	// maxTargets bounds the memo of resolved destinations; it is emptied when full.
	maxTargets = 4096
	// maxVerdicts bounds the memory of detected protocols.
	maxVerdicts = 4096
)

// shard is what runs on one loop.
type shard struct {
	n       *Node
	loop    *loop.Loop
	set     *meter.Set
	desk    trip.Desk
	streams *exchange.Pool
	memory  *detect.Memory

	shares     map[*pod]*share
	pools      map[poolKey]*group
	balancers  map[balancerKey]*balance.Balancer
	targets    map[targetKey]*target
	affinities affinities
	inbound    map[[2]string]*labels
	lookups    map[netip.AddrPort]*lookup
	tunnels    *call // ring head, through call.prev and call.next
	free       *call
	nfree      int
	leaving    bool
}

func newShard(n *Node, l *loop.Loop) *shard {
	sh := &shard{
		n: n, loop: l,
		set: meter.NewSet(n.o.MaxSeries), streams: exchange.NewPool(), memory: detect.NewMemory(maxVerdicts),
		shares: map[*pod]*share{}, pools: map[poolKey]*group{},
		balancers: map[balancerKey]*balance.Balancer{}, targets: map[targetKey]*target{}, affinities: affinities{},
		inbound: map[[2]string]*labels{}, lookups: map[netip.AddrPort]*lookup{},
		tunnels: &call{},
	}
	sh.desk = trip.Desk{Loop: l, Book: meter.NewBook(l), Process: &n.process, Log: n.o.Log, Spare: sh.spare}
	sh.tunnels.prev, sh.tunnels.next = sh.tunnels, sh.tunnels
	l.Post(func() {
		l.After(sweepEvery, sh.sweep)
		shed.Watch(l, sh.streams, sh.each)
	})
	return sh
}

// each visits the connections of clients that are served; their pods are answerable for them.
func (sh *shard) each(visit func(owner any, b exchange.Burden)) {
	for _, s := range sh.shares {
		s.each(func(d *down) {
			if d.burden != nil {
				visit(s, d.burden)
			}
		})
	}
}

func (sh *shard) share(p *pod) *share {
	s := sh.shares[p]
	if s == nil {
		s = newShare(p)
		sh.shares[p] = s
	}
	return s
}

// listen accepts on files, in slot order, instead of the pod's earlier listeners. On an error nothing has changed.
func (sh *shard) listen(p *pod, files []*os.File) error {
	known := sh.shares[p] != nil
	s := sh.share(p)
	var fresh []*sock.Listener
	for i, f := range files {
		if !listening(f) {
			continue // the namespace lacks the address family
		}
		slot := api.Slot(i)
		l, err := sock.Listen(sh.loop, f, func(c *sock.Conn) { sh.accept(s, slot, c) })
		if err != nil {
			for _, l := range fresh {
				l.Close()
			}
			if !known {
				sh.remove(p) // with what was accepted meanwhile
			}
			return err
		}
		l.Short, l.Greedy = sh.desk.Short, s.greedy
		if outward(slot) { // the pod's own application
			l.Near()
		}
		fresh = append(fresh, l)
	}
	s.stop()
	s.listeners = fresh
	return nil
}

// outward reports whether a slot's listener is for connections from the pod.
func outward(s api.Slot) bool { return s == api.OutV4 || s == api.OutV6 }

// stay ends the draining of a pod that has come back.
func (sh *shard) stay(p *pod) {
	if s := sh.shares[p]; s != nil && s.drain != nil {
		s.drain.Stop()
		s.drain = nil
	}
}

// listening reports whether f is a listening socket; the agent sends another file in the place of one that cannot be.
func listening(f *os.File) bool {
	rc, err := f.SyscallConn()
	if err != nil {
		return false
	}
	v := 0
	_ = rc.Control(func(fd uintptr) { v, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN) })
	return v == 1
}

// recordChanged makes connections of p see its new record: what was resolved for it is resolved anew. With another
// identity it does not use the links of the old one any more.
func (sh *shard) recordChanged(p *pod, identity bool) {
	clear(sh.targets)
	for k, g := range sh.pools {
		if identity && k.owner == p && k.major == 0 {
			delete(sh.pools, k)
			g.Drain()
		}
	}
	s := sh.shares[p]
	if s == nil {
		return
	}
	s.each(func(d *down) { d.stale(); d.label = nil })
	if p.record().Mode != mesh.Permissive {
		sh.endPlaintext(s)
	}
}

// endPlaintext ends the connections of a pod that takes no plaintext any more. HTTP may end what it has begun, for a
// while.
func (sh *shard) endPlaintext(s *share) {
	plain := func(d *down) bool { return d.share == s && d.kind == inboundPlain && !d.refused }
	sh.resetTunnels(mesh.ReasonPlaintext, func(c *call) bool { return plain(c.down) && !c.down.isHTTP })
	s.each(func(d *down) {
		if !plain(d) {
			return
		}
		d.refused = true
		sh.n.process.RefusedPlaintext.Add(1)
		sh.n.process.ConnectionFailed(mesh.ReasonPlaintext)
		if !d.isHTTP {
			d.conn.Abort()
			return
		}
		d.front.Quit()
		sh.loop.After(plaintextGrace, func() {
			if d.share != nil {
				d.conn.Abort()
			}
		})
	})
}

// resetTunnels resets the opaque streams that pick chooses.
func (sh *shard) resetTunnels(reason mesh.Reason, pick func(c *call) bool) {
	for c := sh.tunnels.next; c != sh.tunnels; {
		next := c.next
		if pick(c) {
			c.S.Reset(reason)
			next = sh.tunnels.next // whatever else that has ended
		}
		c = next
	}
}

// snapshotChanged forgets what rests on the old snapshot. Connections keep their targets until they next use them.
func (sh *shard) snapshotChanged() {
	clear(sh.targets)
	t := sh.n.table.Load()
	for k := range sh.balancers {
		if p, _ := t.Service(k.dst); p == nil {
			delete(sh.balancers, k)
		}
	}
	sh.answered()
}

// remove ends everything of p at once.
func (sh *shard) remove(p *pod) {
	sh.closePools(p) // a shard that is not the pod's home may have some, and no share
	sh.affinities.drop(func(k affinityKey, _ *affinity) bool { return k.client == p })
	s := sh.shares[p]
	if s == nil {
		return
	}
	s.stop()
	if s.drain != nil {
		s.drain.Stop()
	}
	s.each(func(d *down) { d.conn.Abort() })
	sh.resetTunnels(mesh.ReasonDraining, func(c *call) bool { return c.owner == p })
	delete(sh.shares, p)
	for k := range sh.targets {
		if k.pod == p {
			delete(sh.targets, k)
		}
	}
}

func (sh *shard) closePools(p *pod) {
	for k, g := range sh.pools {
		if k.owner == p {
			delete(sh.pools, k)
			g.Close()
		}
	}
}

// drain stops accepting for p and calls drained when the last of its connections has ended. Connections of applications go
// on as they are; links from other proxies are told to go away when their streams have ended.
func (sh *shard) drain(p *pod, drained func()) {
	s := sh.share(p)
	s.drained = drained
	s.stop()
	s.each(func(d *down) {
		if d.kind == inboundMesh && d.drain != nil {
			d.drain()
		}
	})
	s.drain = sh.loop.After(0, func() { sh.drainStep(s) })
}

func (sh *shard) drainStep(s *share) {
	s.drain = nil
	busy := s.open + s.dialled
	for k, g := range sh.pools {
		if k.owner != s.pod {
			continue
		}
		if g.Active() > 0 || s.open > 0 {
			busy++
			continue
		}
		delete(sh.pools, k)
		g.Close()
	}
	if busy == 0 {
		s.drained()
		return
	}
	s.drain = sh.loop.After(drainEvery, func() { sh.drainStep(s) })
}

// leave prepares for the end of the process.
func (sh *shard) leave() {
	sh.leaving = true
	for _, s := range sh.shares {
		s.stop()
		sh.usher(s)
	}
}

// usher drains the connections of a pod; s may be nil.
func (sh *shard) usher(s *share) {
	if s == nil {
		return
	}
	s.each(func(d *down) {
		if d.drain != nil {
			d.drain()
		}
	})
}

// sweep closes what was idle, and forgets what is empty.
func (sh *shard) sweep() {
	for k, g := range sh.pools {
		g.Sweep()
		if g.Empty() {
			delete(sh.pools, k)
			g.Close()
		}
	}
	sh.set.Sweep(sh.loop.Now())
	sh.affinities.drop(func(_ affinityKey, a *affinity) bool { return !a.holds(sh.loop.Now()) })
	sh.forget()
	sh.loop.After(sweepEvery, sh.sweep)
}

// spare gives up upstream connections that nobody uses now.
func (sh *shard) spare() (some bool) {
	for _, g := range sh.pools {
		some = g.Spare() || some
	}
	return some
}

// countLive brings the byte counters of tunnels, which may live for days, up to date.
func (sh *shard) countLive() {
	for c := sh.tunnels.next; c != sh.tunnels; c = c.next {
		c.countBytes()
	}
}

// intn is the randomness of the balancers.
func intn(n int) int { return rand.IntN(n) }

type balancerKey struct {
	dst netip.AddrPort // a Service's own address and port: one family
}

type targetKey struct {
	pod *pod
	dst netip.AddrPort
}
