package static

import (
	"slices"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/opaque"
	"conduit.io/conduit/proxy/pool"
	"conduit.io/conduit/proxy/sock"
	"conduit.io/conduit/proxy/trip"
)

// handler is the exchange.Handler of a listener's connections.
type handler struct{ l *listener }

// call is a stream's state.
type call struct {
	trip.Trip
	l     *listener
	conn  *conn
	conns *meter.Conns // of a tunnel that is counted as open
	http1 bool         // its server does not take over HTTP/2 what it asks for
	next  *call
}

func (s *Server) newCall() *call {
	c := s.free
	if c == nil {
		return &call{}
	}
	s.free = c.next
	s.nfree--
	return c
}

func (s *Server) freeCall(c *call) {
	if s.nfree >= exchange.MaxFree {
		return
	}
	c.next, s.free = s.free, c
	s.nfree++
}

// Request implements exchange.Handler.
func (h handler) Request(s *exchange.Stream) {
	c := h.l.srv.newCall()
	c.l, c.conn, c.http1 = h.l, s.Conn.(*conn), false
	c.Begin(&h.l.srv.desk, s, c)
	c.Limit(h.l.cfg.Limits)
	s.Ctx = c
	if c.Tunnel {
		if h.l.cfg.Protocol == mesh.Opaque {
			c.open()
		}
		c.tunnel()
		return
	}
	c.CountOn(h.l.request(c.Protocol()))
	if c.conn.counts == nil {
		c.conn.counts = h.l.conn(c.Protocol())
		c.conn.opened(c.conn.counts)
	}
	if why := c.Unsupported(); why != "" {
		s.Fail(501, mesh.ReasonBadRequest, why)
		return
	}
	c.send()
}

// open counts a tunnel, once it is certain to be one.
func (c *call) open() {
	if c.conns == nil {
		c.conns = c.l.conn(meter.TCP)
		c.conn.opened(c.conns)
	}
}

// send puts a request on an upstream connection.
func (c *call) send() {
	c.Attempts++
	c.Over(c.l.pool(c.S.Req, c.http1), nil)
}

// Stranded implements trip.Owner.
func (c *call) Stranded(reason mesh.Reason, detail string) {
	c.Fail(c.conn.front, exchange.HTTPStatus(reason), reason, detail)
}

// pool is where a request goes. An upgrade needs HTTP/1.1, or another proxy, where nothing else is configured; one that came
// over HTTP/2 may be what the server takes over HTTP/2, too.
func (l *listener) pool(r *exchange.Head, http1 bool) *pool.Pool {
	k := auto
	switch {
	case l.cfg.UpstreamProtocol == mesh.HTTP1:
		k = viaHTTP1
	case l.cfg.UpstreamProtocol == mesh.HTTP2:
		k = viaHTTP2
	case http1 || r.Protocol != "" && r.Major == 1:
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
	o := l.dialOptions()
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
		Lacking: srv.desk.Lacking,
		OnLost:  func(err error) { srv.desk.Lost(err, o.Addr) },
		Dial: func(done func(pool.Dialed)) func() {
			return sock.Dial(srv.loop, o, func(c *sock.Conn, err error) {
				if err != nil {
					srv.desk.HandshakeFailed(err, "upstream", o.Addr)
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

func (l *listener) dialOptions() sock.DialOptions {
	up := l.cfg.Upstream
	return sock.DialOptions{Addr: up, Timeout: dialTimeout, TLS: l.cfg.UpstreamTLS, Near: up.Addr().IsLoopback()}
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
func (c *call) tunnel() {
	srv := c.l.srv
	o := c.l.dialOptions()
	if o.TLS != nil && len(o.TLS.NextProtos) > 0 {
		o.TLS = o.TLS.Clone()
		o.TLS.NextProtos = nil
	}
	c.Dial(func(done func(exchange.Upstream, mesh.Reason, error)) func() {
		return sock.Dial(srv.loop, o, func(sc *sock.Conn, err error) {
			if err != nil {
				srv.desk.HandshakeFailed(err, "upstream", o.Addr)
				done(nil, sock.Reason(err), err)
				return
			}
			done(opaque.NewClient(sc, exchange.ClientOptions{Clock: srv.loop, Pool: srv.streams}), mesh.ReasonNone, nil)
		})
	})
}

// Response implements exchange.Handler.
func (handler) Response(s *exchange.Stream) {
	c := s.Ctx.(*call)
	c.Answered()
	if c.conn.link {
		c.conn.notes.Leave(&c.Trip)
	}
}

// Lost implements exchange.Handler.
func (h handler) Lost(s *exchange.Stream, reason mesh.Reason) bool {
	c := s.Ctx.(*call)
	switch {
	case reason == mesh.ReasonNoUpgrade:
		if c.http1 || h.l.cfg.UpstreamProtocol != mesh.Detect {
			return false
		}
		c.http1 = true
	case c.Tunnel || !c.MayRetry():
		return false
	}
	h.l.srv.process.Retries.Add(1)
	c.send()
	return true
}

// Done implements exchange.Handler.
func (h handler) Done(s *exchange.Stream) {
	c := s.Ctx.(*call)
	s.Ctx = nil
	c.Trip.Done()
	c.end()
	c.conns = nil
	h.l.srv.freeCall(c)
}

// end closes the stream's account of bytes.
func (c *call) end() {
	s := c.S
	if !c.Tunnel {
		c.conn.counts.Bytes(s.ReqBytes, s.ResBytes)
		return
	}
	if c.conns == nil && s.Reason == mesh.ReasonNone && s.ReqBytes+s.ResBytes == 0 && c.l.http {
		return // it was HTTP after all
	}
	c.open()
	if d := c.Dialled(); d > 0 {
		c.conns.Connected(int64(d))
	}
	c.conns.Bytes(s.ReqBytes, s.ResBytes)
	c.conns.Closed(s.End, s.Reason)
}
