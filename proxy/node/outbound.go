package node

import (
	"net/netip"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/balance"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/table"
)

// target is a destination that a pod dials, as the snapshot of generation gen knows it. Connections share it, unless it has
// an affinity.
type target struct {
	gen      uint64
	known    bool // it is a Service or a workload
	barred   bool // which does not take this pod's connections
	protocol mesh.Protocol
	balancer *balance.Balancer
	sticky   *sticky // nil: each stream goes where it is best
	labels   labels
}

// labels are the series for streams that differ only in protocol and tls.
type labels struct {
	key      meter.Key
	requests [meter.TLSes][meter.Protocols]*meter.Requests
	conns    [meter.TLSes][meter.Protocols]*meter.Conns
}

// request is the series of requests.
func (l *labels) request(sh *shard, tls meter.TLS, proto meter.Protocol) *meter.Requests {
	r := l.requests[tls][proto]
	if r == nil || r.Gone() {
		k := l.key
		k.TLS, k.Protocol, k.Route = tls, proto, meter.DefaultRoute
		r = sh.set.Requests(k, sh.loop.Now())
		l.requests[tls][proto] = r
	}
	return r
}

// conn is the series of connections.
func (l *labels) conn(sh *shard, tls meter.TLS, proto meter.Protocol) *meter.Conns {
	c := l.conns[tls][proto]
	if c == nil || c.Gone() {
		k := l.key
		k.TLS, k.Protocol = tls, proto
		c = sh.set.Conns(k, sh.loop.Now())
		l.conns[tls][proto] = c
	}
	return c
}

// count books the stream under l. It is counted later: a request when it is answered, a tunnel when it is certain to
// be one.
func (c *call) count(l *labels, tls meter.TLS) {
	if c.Tunnel {
		c.labels, c.tls = l, tls
		c.sh.link(c)
		return
	}
	c.CountOn(l.request(c.sh, tls, c.Protocol())) // of the latest attempt: that is how it went
	if d := c.down; d.conns == nil && d.kind != inboundMesh {
		d.conns = l.conn(c.sh, tls, c.Protocol())
		d.conns.Opened()
		d.opened(d.conns)
	}
}

// resolve finds what d's destination is, by the snapshot in force.
func (sh *shard) resolve(d *down) *target {
	t := sh.n.table.Load()
	if d.target != nil && d.target.gen == t.Generation {
		return d.target
	}
	if d.target != nil && d.target.known && !t.Covers(d.dst) {
		// An agent that has just begun does not know it yet. Nothing that went by mTLS goes on in plaintext meanwhile.
		return d.target
	}
	p := d.share.pod
	k := targetKey{p, d.dst}
	tg := sh.targets[k]
	if tg == nil || tg.gen != t.Generation {
		tg = sh.newTarget(t, p, d.dst, d.client.Addr())
		if tg.known {
			if len(sh.targets) >= maxTargets {
				clear(sh.targets)
			}
			sh.targets[k] = tg
		}
	}
	if tg.sticky != nil {
		tg = tg.own(d.target)
	}
	d.target = tg
	return tg
}

func (sh *shard) newTarget(t *table.Table, p *pod, dst netip.AddrPort, client netip.Addr) *target {
	tg := &target{gen: t.Generation, protocol: mesh.Opaque}
	tg.labels.key = meter.Key{Direction: meter.Outbound, Src: p.record().Label(), Dst: "external"}
	if port, _ := t.Service(dst); port != nil {
		tg.known, tg.protocol = true, port.Protocol
		tg.labels.key.Dst = port.Service.Label
		if tg.barred = !port.Service.Takes(client); tg.barred {
			tg.balancer = balance.New(intn) // nowhere
			return tg
		}
		tg.balancer = sh.balancer(t, port, dst)
		if hold := port.Service.Affinity; hold > 0 {
			tg.sticky = &sticky{key: affinityKey{p, port.Service.Label, port.Port, dst.Addr().Unmap().Is4()}, client: client, hold: hold}
		}
		return tg
	}
	tg.balancer = balance.New(intn)
	w := t.Workload(dst.Addr())
	if w != nil {
		tg.known, tg.protocol = true, t.Declared(dst)
		tg.labels.key.Dst = w.Label()
	}
	tg.balancer.Update(t.Generation, []table.Endpoint{{Addr: dst, Workload: w}})
	return tg
}

// balancer is the shard's balancer for a Service port, kept across snapshots.
func (sh *shard) balancer(t *table.Table, port *table.Port, dst netip.AddrPort) *balance.Balancer {
	k := balancerKey{dst}
	b := sh.balancers[k]
	if b == nil {
		b = balance.New(intn)
		sh.balancers[k] = b
	}
	if b.Generation() != t.Generation {
		b.Update(t.Generation, port.Endpoints(dst.Addr()))
	}
	return b
}

// routeOut sends a stream of the pod's application to an endpoint of its destination.
func (sh *shard) routeOut(c *call) {
	d, req := c.down, c.S.Req
	tg := sh.resolve(d)
	ep := sh.pick(tg, c.tried)
	if ep == nil {
		c.count(&tg.labels, meter.None)
		why := " has no ready endpoint of this address family"
		if tg.barred {
			why = " does not take connections from " + d.client.Addr().String() + " at its load balancer's address"
		}
		c.fail(503, mesh.ReasonNoEndpoints, tg.labels.key.Dst+why)
		return
	}
	c.ep = ep
	c.Attempts++
	ep.Start()
	if why := c.Unsupported(); why != "" {
		c.count(&tg.labels, meter.None)
		c.fail(501, mesh.ReasonBadRequest, why)
		return
	}
	c.sentAt = sh.loop.Now()
	w := ep.Workload
	if w == nil {
		c.count(&tg.labels, meter.None)
		sh.direct(c, ep.Addr)
		return
	}
	p := sh.n.local(w.UID)
	if p != nil && (p == d.share.pod || !sh.n.o.LinkSameNode) {
		c.count(&tg.labels, meter.Local)
		sh.toApp(c, p, ep.Addr, d.client, req.Major)
		return
	}
	if w.Meshed || p != nil {
		c.count(&tg.labels, meter.MTLS)
		sh.overMesh(c, w, ep.Addr)
		return
	}
	c.count(&tg.labels, meter.None)
	sh.direct(c, ep.Addr)
}

// routePlain sends a stream that came without mTLS to the pod's own application.
func (sh *shard) routePlain(c *call) {
	d, req := c.down, c.S.Req
	sh.countIn(c)
	c.Attempts++
	if why := c.Unsupported(); why != "" {
		c.fail(501, mesh.ReasonBadRequest, why)
		return
	}
	sh.toApp(c, d.share.pod, d.dst, d.client, req.Major)
}

// countIn books an inbound stream.
func (sh *shard) countIn(c *call) {
	d := c.down
	if d.label == nil {
		d.label = sh.inLabels(d.src, d.share.pod.record().Label())
	}
	tls := meter.None
	if d.kind == inboundMesh {
		tls = meter.MTLS
	}
	c.count(d.label, tls)
}

// inLabels shares the series of inbound connections between the same two workloads.
func (sh *shard) inLabels(src, dst string) *labels {
	k := [2]string{src, dst}
	l := sh.inbound[k]
	if l == nil {
		if len(sh.inbound) >= maxTargets {
			clear(sh.inbound)
		}
		l = &labels{key: meter.Key{Direction: meter.Inbound, Src: src, Dst: dst}}
		sh.inbound[k] = l
	}
	return l
}
