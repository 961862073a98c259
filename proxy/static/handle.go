package static

import (
	"slices"
	"strings"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/opaque"
	"conduit.io/conduit/proxy/pool"
	"conduit.io/conduit/proxy/sock"
)

// maxAttempts is how often a stream is sent before it fails.
const maxAttempts = 3

// handler is the exchange.Handler of a listener's connections.
type handler struct{ l *listener }

// call is a stream's state.
type call struct {
	ticket   *pool.Ticket
	cancel   func()
	series   *series
	attempts int
	grpc     bool
	tunnel   bool
	counted  bool // a tunnel, counted as open
	next     *call
}

func (s *Server) newCall() *call {
	c := s.free
	if c == nil {
		return &call{}
	}
	s.free = c.next
	*c = call{}
	return c
}

// open counts a tunnel, once it is certain to be one.
func (c *call) open() {
	if !c.counted {
		c.counted = true
		c.series.conns.Opened()
	}
}

// Request implements exchange.Handler.
func (h handler) Request(s *exchange.Stream) {
	c := h.l.srv.newCall()
	c.tunnel = s.Req.Major == 0
	s.Ctx = c
	conn := s.Conn.(*conn)
	switch {
	case c.tunnel:
		c.series = h.l.label(meter.TCP)
		if h.l.cfg.Protocol == mesh.Opaque {
			c.open()
		}
		h.tunnel(s, c)
		return
	case strings.HasPrefix(s.Req.Get("content-type"), "application/grpc"):
		c.grpc = true
		c.series = h.l.label(meter.GRPC)
	case s.Req.Major == 2:
		c.series = h.l.label(meter.HTTP2)
	default:
		c.series = h.l.label(meter.HTTP1)
	}
	c.series.requests.Begin()
	c.series.requests.Started()
	if conn.counts == nil {
		conn.counts = c.series.conns
		conn.counts.Opened()
	}
	if s.Req.Method == "CONNECT" && s.Req.Protocol == "" {
		s.Fail(501, mesh.ReasonBadRequest, "CONNECT is not supported here")
		return
	}
	h.send(s, c)
}

// send puts a request on an upstream connection, now or when there is one.
func (h handler) send(s *exchange.Stream, c *call) {
	c.attempts++
	p := h.l.pool(s.Req)
	if u := p.Get(); u != nil {
		s.Forward(u, nil)
		return
	}
	waited := false
	t := p.Wait(func(u exchange.Upstream, reason mesh.Reason, err error) {
		waited = true
		c.ticket = nil
		if err != nil {
			s.Fail(statusOf(reason), reason, err.Error())
			return
		}
		s.Forward(u, nil)
	})
	if !waited {
		c.ticket = t
	}
}

func statusOf(r mesh.Reason) int {
	if r == mesh.ReasonConnectTimeout {
		return 504
	}
	return 503
}

// pool is where a request goes. An upgrade needs HTTP/1.1, or another proxy, where nothing else is configured.
func (l *listener) pool(r *exchange.Head) *pool.Pool {
	k := auto
	switch {
	case l.cfg.UpstreamProtocol == mesh.HTTP1:
		k = viaHTTP1
	case l.cfg.UpstreamProtocol == mesh.HTTP2:
		k = viaHTTP2
	case r.Protocol != "" && r.Major == 1:
		k = viaHTTP1
	case l.cfg.UpstreamTLS != nil:
	case r.Major == 2:
		k = viaHTTP2
	default:
		k = viaHTTP1
	}
	p := l.pools[k]
	if p == nil {
		p = l.newPool(k)
		l.pools[k] = p
	}
	return p
}

func (l *listener) newPool(k poolKind) *pool.Pool {
	srv := l.srv
	proto := [...]mesh.Protocol{auto: mesh.Detect, viaHTTP1: mesh.HTTP1, viaHTTP2: mesh.HTTP2}[k]
	o := sock.DialOptions{Addr: l.cfg.Upstream, Timeout: dialTimeout, TLS: l.cfg.UpstreamTLS}
	if k == viaHTTP1 && o.TLS != nil {
		o.TLS = o.TLS.Clone()
		o.TLS.NextProtos = slices.DeleteFunc(slices.Clone(o.TLS.NextProtos), func(p string) bool { return p == "h2" })
	}
	return pool.New(pool.Options{
		Clock: srv.loop, Streams: srv.streams, Protocol: proto,
		MaxConns: maxConns, MaxWaiting: maxWaiting, Wait: 2 * dialTimeout,
		OnViolation: func(v exchange.Violation) {
			srv.process.Abused(v.Abuse)
			srv.log.Debug("protocol violation", "upstream", o.Addr, "reason", string(v.Reason), "abuse", string(v.Abuse), "detail", v.Detail)
		},
		Dial: func(done func(pool.Dialed)) func() {
			return sock.Dial(srv.loop, o, func(c *sock.Conn, err error) {
				if err != nil {
					if o.TLS != nil && sock.Reason(err) != mesh.ReasonConnect {
						srv.process.HandshakeFailed(sock.Reason(err))
					}
					done(pool.Dialed{Reason: sock.Reason(err), Err: err})
					return
				}
				d := pool.Dialed{Conn: c}
				d.Protocol, d.Internal = spoken(c, proto)
				done(d)
			})
		},
	})
}

// spoken is the protocol of a new upstream connection, and whether it is a link to another proxy.
func spoken(c *sock.Conn, configured mesh.Protocol) (p mesh.Protocol, link bool) {
	negotiated := ""
	if cs := c.TLS(); cs != nil {
		negotiated = cs.NegotiatedProtocol
	}
	switch {
	case negotiated == mesh.ALPNConduit:
		return mesh.HTTP2, true
	case configured != mesh.Detect:
		return configured, false
	case negotiated == "h2":
		return mesh.HTTP2, false
	}
	return mesh.HTTP1, false
}

// tunnel dials a connection for an opaque one.
func (h handler) tunnel(s *exchange.Stream, c *call) {
	srv := h.l.srv
	o := sock.DialOptions{Addr: h.l.cfg.Upstream, Timeout: dialTimeout, TLS: h.l.cfg.UpstreamTLS}
	if o.TLS != nil && len(o.TLS.NextProtos) > 0 {
		o.TLS = o.TLS.Clone()
		o.TLS.NextProtos = nil
	}
	c.cancel = sock.Dial(srv.loop, o, func(sc *sock.Conn, err error) {
		c.cancel = nil
		if err != nil {
			h.tunnelFailed(s, c, err)
			return
		}
		s.Forward(opaque.NewClient(sc, exchange.ClientOptions{Clock: srv.loop, Pool: srv.streams}), nil)
	})
}

// tunnelFailed resets a connection whose upstream cannot be reached; a client that may yet speak HTTP is given the
// time to do so, because it can be told why.
func (h handler) tunnelFailed(s *exchange.Stream, c *call, err error) {
	fail := func() {
		c.cancel = nil
		h.l.srv.process.ConnectionFailed(sock.Reason(err))
		s.Fail(503, sock.Reason(err), err.Error())
	}
	if f := s.Conn.(*conn).front; f == nil || !f.Undecided() {
		fail()
		return
	}
	c.cancel = h.l.srv.loop.After(clientFirst, fail).Stop
}

// Response implements exchange.Handler.
func (handler) Response(*exchange.Stream) {}

// Lost implements exchange.Handler.
func (h handler) Lost(s *exchange.Stream, _ mesh.Reason) bool {
	c := s.Ctx.(*call)
	idempotent := false
	switch s.Req.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		idempotent = s.Req.Protocol == ""
	}
	if c.tunnel || c.attempts >= maxAttempts || !s.Unprocessed && !idempotent {
		return false
	}
	h.l.srv.process.Retries.Add(1)
	h.send(s, c)
	return true
}

// Done implements exchange.Handler.
func (h handler) Done(s *exchange.Stream) {
	c := s.Ctx.(*call)
	s.Ctx = nil
	h.end(s, c)
	c.next, h.l.srv.free = h.l.srv.free, c
}

func (h handler) end(s *exchange.Stream, c *call) {
	if c.ticket != nil {
		c.ticket.Cancel()
	}
	if c.cancel != nil {
		c.cancel()
	}
	if c.tunnel {
		if !c.counted && s.Reason == mesh.ReasonNone && s.ReqBytes+s.ResBytes == 0 && h.l.http {
			return // it was HTTP after all
		}
		c.open()
		c.series.conns.Bytes(s.ReqBytes, s.ResBytes)
		c.series.conns.Closed(s.End, s.Reason)
		return
	}
	c.series.conns.Bytes(s.ReqBytes, s.ResBytes)
	o := meter.Outcome{Reason: s.Reason}
	if s.Res != nil {
		o.Status = s.Res.Status
		o.OK = s.Reason == mesh.ReasonNone && o.Status < 500
	}
	if c.grpc {
		o.GRPC = grpcStatus(s)
		o.OK = o.OK && meter.GRPCOK(o.GRPC)
	}
	c.series.requests.Ended(s.End, s.End-s.Start, o)
}

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
