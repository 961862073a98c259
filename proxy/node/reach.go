package node

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"

	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/opaque"
	"conduit.io/conduit/proxy/pool"
	"conduit.io/conduit/proxy/sock"
)

const (
	maxHTTP1Conns = 4096 // of one pool
	maxHTTP2Conns = 64
	maxWaiting    = 8192
)

// poolKey says who may share a pool: connections to one address, dialled in one pod's namespace, and for one client
// where the application is shown the client's address. A link to another proxy belongs to one source pod and one
// destination workload, so that two identities never meet on it.
type poolKey struct {
	owner  *pod
	addr   netip.AddrPort
	client netip.Addr    // of connections to applications
	peer   mesh.Identity // of links
	major  int           // 0: a link
}

// group is a pool and what its next dial needs.
type group struct {
	*pool.Pool
	client netip.AddrPort // for whom the next connection is dialled
}

// toApp carries a stream to dst, an application's own address, in the namespace of p; the application sees client.
func (sh *shard) toApp(c *call, p *pod, dst, client netip.AddrPort, major int) {
	if c.Tunnel {
		tag := kernel.NewSockTag(kernel.KindVirtual, client)
		sh.dialTunnel(c, p, dst, &tag)
		return
	}
	if c.http1 {
		major = 1
	}
	g := sh.group(c.down, poolKey{owner: p, addr: dst, client: client.Addr(), major: major}, kernel.KindVirtual)
	g.client = client
	c.Over(g.Pool, nil)
}

// direct carries a stream to an address outside the mesh, as the pod itself would.
func (sh *shard) direct(c *call, dst netip.AddrPort) {
	p := c.down.share.pod
	if c.Tunnel {
		tag := kernel.NewSockTag(kernel.KindProxy, netip.AddrPort{})
		sh.dialTunnel(c, p, dst, &tag)
		return
	}
	major := c.S.Req.Major
	if c.http1 {
		major = 1
	}
	c.Over(sh.group(c.down, poolKey{owner: p, addr: dst, major: major}, kernel.KindProxy).Pool, nil)
}

// overMesh carries a stream to the proxy of workload w, for its application at dst.
func (sh *shard) overMesh(c *call, w *mesh.Workload, dst netip.AddrPort) {
	d := c.down
	t := sh.n.table.Load()
	k := poolKey{owner: d.share.pod, addr: netip.AddrPortFrom(dst.Addr(), sh.n.o.MeshPort), peer: w.Identity(t.TrustDomain)}
	g := sh.group(d, k, kernel.KindProxy)
	c.linked = true
	if c.Tunnel {
		c.S.Req = &exchange.Head{Method: "CONNECT", Authority: dst.String()}
		c.Over(g.Pool, d.tunnelFields())
		return
	}
	c.Over(g.Pool, d.linkFields(dst.Port(), c.S.Req.Major))
}

// group is the pool for k, with a short memory in d.
func (sh *shard) group(d *down, k poolKey, kind kernel.Kind) *group {
	if d.last != nil && d.lastKey == k && !d.last.Closed() {
		return d.last
	}
	g := sh.pools[k]
	if g == nil {
		g = sh.newGroup(k, kind)
		sh.pools[k] = g
	}
	d.lastKey, d.last = k, g
	return g
}

func (sh *shard) newGroup(k poolKey, kind kernel.Kind) *group {
	g := &group{}
	o := pool.Options{
		Clock: sh.loop, Streams: sh.streams, MaxWaiting: maxWaiting, MaxConns: maxHTTP2Conns,
		Protocol: mesh.HTTP2, Wait: sh.n.o.ConnectTimeout + sh.n.o.ConnectTimeout/5, Lacking: sh.desk.Lacking,
		OnViolation: func(v exchange.Violation) {
			sh.n.process.Abused(v.Abuse)
			sh.n.o.Log.Debug("protocol violation", "upstream", k.addr, "reason", string(v.Reason), "abuse", string(v.Abuse), "detail", v.Detail)
		},
	}
	switch k.major {
	case 0:
		o.Internal = true
		o.OnLost = func(err error) { sh.desk.Lost(err, k.addr) }
		o.OnConns = func(delta int) { sh.n.process.MeshOpen.Add(int64(delta)) }
		o.Dial = func(done func(pool.Dialed)) func() { return sh.dialLink(k, done) }
		g.Pool = pool.New(o)
		return g
	case 1:
		o.Protocol, o.MaxConns = mesh.HTTP1, maxHTTP1Conns
	}
	o.Dial = func(done func(pool.Dialed)) func() {
		tag := kernel.NewSockTag(kind, g.client)
		return sh.dial(k.owner, k.addr, &tag, nil, func(c *sock.Conn, reason mesh.Reason, err error) {
			if err != nil {
				done(pool.Dialed{Reason: reason, Err: err})
				return
			}
			done(pool.Dialed{Conn: c, Protocol: o.Protocol})
		})
	}
	g.Pool = pool.New(o)
	return g
}

// dialLink opens an mTLS connection to another proxy.
func (sh *shard) dialLink(k poolKey, done func(pool.Dialed)) (cancel func()) {
	own := k.owner.record().Identity(sh.n.table.Load().TrustDomain)
	cfg, err := sh.n.certs.ClientConfig(own, k.peer)
	if err != nil {
		stop := sh.loop.After(0, func() { done(pool.Dialed{Reason: mesh.ReasonNoCertificate, Err: err}) })
		return stop.Stop
	}
	sh.n.process.MeshDialled.Add(1)
	tag := kernel.NewSockTag(kernel.KindProxy, netip.AddrPort{})
	return sh.dial(k.owner, k.addr, &tag, cfg, func(c *sock.Conn, reason mesh.Reason, err error) {
		if err == nil {
			if cs := c.TLS(); cs.NegotiatedProtocol != mesh.ALPNConduit {
				c.Abort()
				reason, err = mesh.ReasonTLS, &sock.HandshakeError{Err: fmt.Errorf("%s speaks %q, not %s", k.addr, cs.NegotiatedProtocol, mesh.ALPNConduit)}
			}
		}
		if err != nil {
			sh.desk.HandshakeFailed(err, "upstream", k.addr)
			done(pool.Dialed{Reason: reason, Err: err})
			return
		}
		cs := c.TLS()
		lease := func(f func()) flow.Timer {
			c.OnWorn(f)
			return sh.n.certs.Lease(sh.loop, cfg, cs, f)
		}
		done(pool.Dialed{Conn: c, Protocol: mesh.HTTP2, Lease: lease})
	})
}

// dial connects to addr in the namespace of p. done runs on the loop, not after cancel.
func (sh *shard) dial(p *pod, addr netip.AddrPort, tag *kernel.SockTag, cfg *tls.Config, done func(*sock.Conn, mesh.Reason, error)) (cancel func()) {
	o := sock.DialOptions{
		Netns: p.netns, Addr: addr, Tag: tag, Tags: sh.n.tags.Load(), Timeout: sh.n.o.ConnectTimeout, TLS: cfg,
	}
	if cfg != nil {
		o.UserTimeout = meshTimeout
	}
	o.Near = slices.Contains(p.record().Addrs, addr.Addr()) // the pod's own application
	return sock.Dial(sh.loop, o, func(c *sock.Conn, err error) {
		if err != nil {
			done(nil, sock.Reason(err), fmt.Errorf("%s: %w", addr, err))
			return
		}
		done(c, mesh.ReasonNone, nil)
	})
}

// dialTunnel carries an opaque stream over a connection of its own.
func (sh *shard) dialTunnel(c *call, p *pod, addr netip.AddrPort, tag *kernel.SockTag) {
	c.owner = p
	s := sh.share(p)
	s.dialled++
	c.Dial(func(done func(exchange.Upstream, mesh.Reason, error)) func() {
		cancel := sh.dial(p, addr, tag, nil, func(conn *sock.Conn, reason mesh.Reason, err error) {
			if err != nil {
				s.dialled--
				done(nil, reason, err)
				return
			}
			o := exchange.ClientOptions{Clock: sh.loop, Pool: sh.streams, OnChange: func(_ exchange.Upstream, ended bool, _ error) {
				if ended {
					s.dialled--
				}
			}}
			done(opaque.NewClient(flow.Conn(conn), o), mesh.ReasonNone, nil)
		})
		return func() { s.dialled--; cancel() }
	})
}
