package node

import (
	"strings"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/balance"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/pool"
)

const (
	// maxAttempts is how often a stream is sent to some endpoint before it fails.
	maxAttempts = 3
	// tunnelAge is the age at which an opaque connection on which nobody has spoken is counted as one.
	tunnelAge = time.Second
)

// call is the Handler's part of a stream, from Request to Done. Calls are reused.
type call struct {
	sh   *shard
	down *down
	s    *exchange.Stream

	tunnel bool // bytes, not HTTP
	grpc   bool

	// Outbound: where it goes.
	ep       *balance.Endpoint
	triedBuf [maxAttempts]*balance.Endpoint
	tried    []*balance.Endpoint
	attempts int
	sentAt   int64
	linked   bool // over another proxy, whose conduit-reason counts

	// What it waits for.
	ticket *pool.Ticket
	cancel func()

	requests *meter.Requests
	started  bool    // it is counted as a request
	labels   *labels // of a tunnel
	tls      meter.TLS
	conns    *meter.Conns // of a tunnel that is counted as open
	read     uint64       // bytes counted so far
	wrote    uint64

	owner      *pod // of a tunnel: the pod in whose namespace its upstream connection was dialled
	prev, next *call
}

// handler is the exchange.Handler of all the shard's connections.
type handler struct{ sh *shard }

// Request implements exchange.Handler.
func (h handler) Request(s *exchange.Stream) {
	sh := h.sh
	c := sh.newCall()
	c.s, c.down = s, s.Conn.(*down)
	s.Ctx = c
	switch c.down.kind {
	case outbound:
		sh.routeOut(c)
	case inboundMesh:
		sh.routeMesh(c)
	default:
		sh.routePlain(c)
	}
}

// Response implements exchange.Handler.
func (h handler) Response(s *exchange.Stream) {
	c := s.Ctx.(*call)
	if c.ep == nil {
		c.start()
		return
	}
	now := h.sh.loop.Now()
	switch {
	case c.linked && s.Res.Status >= 300 && s.Res.Get(mesh.ReasonHeader) != "":
		// The other proxy speaks, not the application; Lost may follow.
	case c.tunnel:
		c.ep.Connected()
		if f := c.down.front; f == nil || !f.Undecided() {
			c.open()
		}
	default:
		c.start()
		c.ep.Observe(now, time.Duration(now-c.sentAt))
	}
}

// start counts a request, once.
func (c *call) start() {
	if !c.started && c.requests != nil {
		c.started = true
		c.requests.Started()
	}
}

// unreachable reports whether the proxy at the other end could not reach its application.
func unreachable(r mesh.Reason) bool {
	return r == mesh.ReasonConnect || r == mesh.ReasonConnectTimeout
}

// Lost implements exchange.Handler: an upstream connection broke before it answered. What certainly was not begun is
// sent again, and so is what may be repeated by its nature (RFC 9110, 9.2.2).
func (h handler) Lost(s *exchange.Stream, reason mesh.Reason) bool {
	c := s.Ctx.(*call)
	if c.linked && unreachable(reason) && s.Unprocessed {
		c.dialFailed(reason, "the server's proxy could not reach it")
		return true
	}
	if !s.Unprocessed && (c.tunnel || !idempotent(s.Req)) || c.attempts >= maxAttempts {
		return false
	}
	h.sh.n.process.Retries.Add(1)
	c.again()
	return true
}

func idempotent(r *exchange.Head) bool {
	switch r.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return r.Protocol == ""
	}
	return false
}

// again routes a stream anew after a failed attempt.
func (c *call) again() {
	c.leaveEndpoint(true)
	switch c.down.kind {
	case outbound:
		c.sh.routeOut(c)
	case inboundMesh:
		c.sh.routeMesh(c)
	default:
		c.sh.routePlain(c)
	}
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

// dialFailed deals with an upstream that could not be reached: another endpoint, or the end.
func (c *call) dialFailed(reason mesh.Reason, detail string) {
	if c.ep != nil && reason != mesh.ReasonOverload && reason != mesh.ReasonNoCertificate && reason != mesh.ReasonDraining {
		c.ep.Failed(c.sh.loop.Now())
	}
	many := c.ep != nil && c.sh.resolve(c.down).balancer.Len() > 1
	if many && c.attempts < maxAttempts {
		c.sh.n.process.Retries.Add(1)
		c.again()
		return
	}
	c.fail(statusOf(reason), reason, detail)
}

// fail answers with a failure of the mesh. A client that may yet turn out to speak HTTP is given the time to do so,
// because then it can be told why; an opaque connection can only be reset.
func (c *call) fail(status int, reason mesh.Reason, detail string) {
	if f := c.down.front; c.tunnel && f != nil && f.Undecided() {
		c.cancel = c.sh.loop.After(clientFirst, func() { c.cancel = nil; c.failNow(status, reason, detail) }).Stop
		return
	}
	c.failNow(status, reason, detail)
}

func (c *call) failNow(status int, reason mesh.Reason, detail string) {
	if c.tunnel && c.down.kind != inboundMesh {
		c.sh.n.process.ConnectionFailed(reason)
	}
	c.sh.n.o.Log.Debug("stream failed", "client", c.down.client, "destination", c.down.dst, "reason", string(reason), "detail", detail)
	c.s.Fail(status, reason, detail)
}

// statusOf is the HTTP status for a failure.
func statusOf(r mesh.Reason) int {
	switch r {
	case mesh.ReasonConnectTimeout, mesh.ReasonTimeout:
		return 504
	case mesh.ReasonUpstreamReset, mesh.ReasonUpstreamProto:
		return 502
	case mesh.ReasonPlaintext, mesh.ReasonNotMeshTarget:
		return 403
	case mesh.ReasonBadRequest:
		return 400
	}
	return 503
}

// Done implements exchange.Handler.
func (h handler) Done(s *exchange.Stream) {
	c := s.Ctx.(*call)
	if c.ticket != nil {
		c.ticket.Cancel()
	}
	if c.cancel != nil {
		c.cancel()
	}
	c.leaveEndpoint(false)
	if c.tunnel {
		c.tunnelDone()
	} else {
		c.requestDone()
	}
	s.Ctx = nil
	h.sh.freeCall(c)
}

func (c *call) requestDone() {
	s := c.s
	if d := c.down; d.conns != nil {
		d.conns.Bytes(s.ReqBytes, s.ResBytes)
	}
	if c.requests == nil {
		return
	}
	c.start()
	reason := s.Reason
	ok := reason == mesh.ReasonNone && s.Res != nil && s.Res.Status < 500
	if c.linked && s.Res != nil && reason == mesh.ReasonNone {
		if r := reasonOf(s); r != "" {
			reason, ok = r, false
		}
	}
	o := meter.Outcome{OK: ok, Reason: reason}
	if s.Res != nil {
		o.Status = s.Res.Status
	}
	if c.grpc {
		o.GRPC = grpcStatus(s)
		o.OK = ok && meter.GRPCOK(o.GRPC)
	}
	c.requests.Ended(s.End, s.End-s.Start, o)
}

// reasonOf is another proxy's reason: in its response, or in trailers if the response had begun when it failed.
func reasonOf(s *exchange.Stream) mesh.Reason {
	for i := range s.Trailers {
		if s.Trailers[i].Name == mesh.ReasonHeader {
			return mesh.Reason(s.Trailers[i].Value)
		}
	}
	return mesh.Reason(s.Res.Get(mesh.ReasonHeader))
}

// grpcStatus is the call's status: in trailers, or in the head of a response that has nothing else.
func grpcStatus(s *exchange.Stream) string {
	for i := range s.Trailers {
		if s.Trailers[i].Name == "grpc-status" {
			return s.Trailers[i].Value
		}
	}
	if s.Res == nil || s.Res.Status != 200 {
		return ""
	}
	return s.Res.Get("grpc-status")
}

func isGRPC(r *exchange.Head) bool {
	return strings.HasPrefix(r.Get("content-type"), "application/grpc")
}

// open counts a tunnel as open, once it is certain to be one.
func (c *call) open() {
	if c.conns == nil && c.labels != nil {
		c.conns = c.labels.conn(c.sh, c.tls, meter.TCP)
		c.conns.Opened()
	}
}

// countBytes brings the tunnel's byte counters up to date.
func (c *call) countBytes() {
	s := c.s
	if s == nil || c.labels == nil {
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
	s := c.s
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
		c.next = nil
	}
	c.tried = c.triedBuf[:0]
	return c
}

func (sh *shard) freeCall(c *call) {
	if c.prev != nil {
		c.prev.next, c.next.prev = c.next, c.prev
	}
	*c = call{sh: sh, next: sh.free}
	sh.free = c
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
