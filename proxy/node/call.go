package node

import (
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/balance"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/trip"
)

// tunnelAge is the age at which an opaque connection on which nobody has spoken is counted as one.
const tunnelAge = time.Second

// call is the Handler's part of a stream, from Request to Done. Calls are reused.
type call struct {
	trip.Trip
	sh   *shard
	down *down

	// Outbound: where it goes.
	ep       *balance.Endpoint
	triedBuf [trip.MaxAttempts]*balance.Endpoint
	tried    []*balance.Endpoint
	sentAt   int64
	linked   bool // over another proxy
	http1    bool // its application does not take over HTTP/2 what it asks for

	labels *labels      // of a tunnel
	tls    meter.TLS    // likewise
	conns  *meter.Conns // of a tunnel that is counted as open
	read   uint64       // bytes counted so far
	wrote  uint64

	owner      *pod // of a tunnel: the pod in whose namespace its upstream connection was dialled
	prev, next *call
}

// handler is the exchange.Handler of all the shard's connections.
type handler struct{ sh *shard }

// Request implements exchange.Handler.
func (h handler) Request(s *exchange.Stream) {
	c := h.sh.newCall()
	c.Begin(&h.sh.desk, s, c)
	c.down = s.Conn.(*down)
	c.FromLink, c.linked, c.http1 = c.down.kind == inboundMesh, false, false
	c.Limit(h.sh.n.o.Limits)
	s.Ctx = c
	c.route()
}

// route sends the stream on to where it goes. What belongs to a pod that is gone goes nowhere.
func (c *call) route() {
	if s := c.down.share; s == nil || s.pod.removed.Load() {
		c.S.Reset(mesh.ReasonDraining)
		return
	}
	switch c.down.kind {
	case outbound:
		c.sh.routeOut(c)
	case inboundMesh:
		c.sh.routeMesh(c)
	default:
		c.sh.routePlain(c)
	}
}

// Response implements exchange.Handler.
func (h handler) Response(s *exchange.Stream) {
	c := s.Ctx.(*call)
	if c.ep == nil {
		c.Answered()
		if c.FromLink && !c.down.hbone {
			c.down.notes.Leave(&c.Trip)
		}
		return
	}
	now := h.sh.loop.Now()
	switch {
	case c.linked && s.Res.Status >= 300 && s.Res.Get(mesh.ReasonHeader) != "":
		// The other proxy speaks, not the application; Lost may follow.
	case c.Tunnel:
		c.ep.Connected()
		if f := c.down.front; f == nil || !f.Undecided() {
			c.open()
		}
	default:
		c.Answered()
		c.ep.Observe(now, time.Duration(now-c.sentAt))
	}
}

// unreachable reports whether the proxy at the other end could not reach its application.
func unreachable(r mesh.Reason) bool {
	return r == mesh.ReasonConnect || r == mesh.ReasonConnectTimeout
}

// Lost implements exchange.Handler: an upstream connection broke before it answered.
func (h handler) Lost(s *exchange.Stream, reason mesh.Reason) bool {
	c := s.Ctx.(*call)
	if c.linked && unreachable(reason) && s.Unprocessed {
		c.Stranded(reason, "the server's proxy could not reach it")
		return true
	}
	if s := c.down.share; s == nil || s.pod.removed.Load() || !c.MayRetry() {
		return false
	}
	if reason == mesh.ReasonNoUpgrade {
		return c.downgrade()
	}
	c.again()
	return true
}

// downgrade sends an upgrade that the application does not take over HTTP/2 as one of HTTP/1.1, once.
func (c *call) downgrade() bool {
	if c.http1 {
		return false
	}
	c.http1 = true
	c.leaveEndpoint(false)
	c.route()
	return true
}

// again routes a stream anew after a failed attempt.
func (c *call) again() {
	c.sh.n.process.Retries.Add(1)
	c.leaveEndpoint(true)
	c.route()
}

func (c *call) leaveEndpoint(failed bool) {
	if c.ep == nil {
		return
	}
	c.ep.End()
	if failed && len(c.tried) < len(c.triedBuf) {
		c.tried = append(c.tried, c.ep)
	}
	c.ep = nil
}

// Stranded implements trip.Owner: another endpoint, or the end.
func (c *call) Stranded(reason mesh.Reason, detail string) {
	if c.ep != nil && reason != mesh.ReasonOverload && reason != mesh.ReasonNoCertificate && reason != mesh.ReasonDraining {
		c.ep.Failed(c.sh.loop.Now())
	}
	many := c.ep != nil && c.sh.resolve(c.down).balancer.Len() > 1
	if many && c.Attempts < trip.MaxAttempts {
		c.again()
		return
	}
	c.fail(exchange.HTTPStatus(reason), reason, detail)
}

// fail answers with a failure of the mesh.
func (c *call) fail(status int, reason mesh.Reason, detail string) {
	c.sh.n.o.Log.Debug("stream failed", "client", c.down.client, "destination", c.down.dst, "reason", string(reason), "detail", detail)
	c.Fail(c.down.front, status, reason, detail)
}

// Done implements exchange.Handler.
func (h handler) Done(s *exchange.Stream) {
	c := s.Ctx.(*call)
	c.Trip.Done()
	c.leaveEndpoint(false)
	if c.Tunnel {
		c.tunnelDone()
	} else if d := c.down; d.conns != nil {
		d.conns.Bytes(s.ReqBytes, s.ResBytes)
	}
	s.Ctx = nil
	h.sh.freeCall(c)
}

// open counts a tunnel as open, once it is certain to be one.
func (c *call) open() {
	if c.conns == nil && c.labels != nil {
		c.conns = c.labels.conn(c.sh, c.tls, meter.TCP)
		c.conns.Opened()
		if !c.FromLink {
			c.down.opened(c.conns)
		}
		if d := c.Dialled(); d > 0 {
			c.conns.Connected(int64(d))
		}
	}
}

// countBytes brings the tunnel's byte counters up to date.
func (c *call) countBytes() {
	s := c.S
	if c.labels == nil {
		return
	}
	if c.conns == nil {
		if s.ReqBytes+s.ResBytes == 0 && c.sh.loop.Now()-s.Start < int64(tunnelAge) {
			return
		}
		c.open()
	}
	c.conns.Bytes(s.ReqBytes-c.read, s.ResBytes-c.wrote)
	c.read, c.wrote = s.ReqBytes, s.ResBytes
}

// tunnelDone closes a tunnel's account. One that the client gave up before it said a word was never one: at its end
// or at the other, it turned out to speak HTTP.
func (c *call) tunnelDone() {
	s := c.S
	link := c.down.kind == inboundMesh && s.ReqBytes == 0 && s.Reason == mesh.ReasonDownstreamReset && c.sh.loop.Now()-s.Start < int64(tunnelAge)
	if c.conns == nil && (c.down.isHTTP || link) {
		return
	}
	c.open()
	c.countBytes()
	if c.conns != nil {
		c.conns.Closed(c.sh.loop.Now(), s.Reason)
	}
	if s.ResBytes > 0 && s.ReqBytes == 0 && c.down.kind == outbound {
		c.sh.memory.Put(c.down.dst, verdict(mesh.Opaque)) // the server speaks first
	}
}

func (sh *shard) newCall() *call {
	c := sh.free
	if c == nil {
		c = &call{sh: sh}
	} else {
		sh.free = c.next
		sh.nfree--
		c.next = nil
	}
	c.tried = c.triedBuf[:0]
	return c
}

func (sh *shard) freeCall(c *call) {
	if c.prev != nil {
		c.prev.next, c.next.prev = c.next, c.prev
	}
	if c.Tunnel || len(c.tried) > 0 {
		*c = call{sh: sh}
	}
	if sh.nfree >= exchange.MaxFree {
		return
	}
	c.next, sh.free = sh.free, c
	sh.nfree++
}

// link puts a tunnel into the list of those that are counted while they live.
func (sh *shard) link(c *call) {
	if c.prev != nil {
		return
	}
	r := sh.tunnels
	c.prev, c.next = r, r.next
	c.prev.next, c.next.prev = c, c
}
