package node

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/h2"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/mtls"
	"conduit.io/conduit/proxy/sock"

	"golang.org/x/net/http2/hpack"
)

// The request fields of a link between two proxies.
const (
	dstField    = "conduit-dst"    // PORT/http1 or PORT/http2: the application's port, and what to speak to it
	clientField = "conduit-client" // IP:PORT of the client; believed only if the IP is that of the link's peer
)

// meshTimeout is how long a link between proxies may be unacknowledged: both sides always read.
const meshTimeout = 30 * time.Second

// serveMesh shakes hands on a connection to the mesh port and serves its streams.
func (sh *shard) serveMesh(d *down, c *sock.Conn) {
	id := d.share.pod.record().Identity(sh.n.table.Load().TrustDomain)
	cfg, err := sh.n.certs.ServerConfig(id)
	if err != nil {
		sh.n.process.HandshakeFailed(mesh.ReasonNoCertificate)
		sh.refuse(d, mesh.ReasonNoCertificate)
		return
	}
	c.StartTLS(cfg, func(err error) {
		if err != nil {
			sh.desk.HandshakeFailed(err, "client", d.client)
			sh.closed(d, nil) // the connection closes by itself
			return
		}
		sh.linkUp(d, c, cfg)
	})
}

// linkUp serves a link that was made with cfg.
func (sh *shard) linkUp(d *down, c *sock.Conn, cfg *tls.Config) {
	cs := c.TLS()
	peer, err := mtls.PeerIdentity(cs)
	if err != nil {
		sh.n.process.HandshakeFailed(mesh.ReasonPeerIdentity)
		sh.refuse(d, mesh.ReasonPeerIdentity)
		return
	}
	c.SetUserTimeout(meshTimeout)
	d.hbone = cs.NegotiatedProtocol != mesh.ALPNConduit
	sh.notice(d.client.Addr())
	d.src = sh.peerLabel(d.client.Addr(), peer)
	d.label = sh.inLabels(d.src, d.share.pod.record().Label())
	d.opened(d.label.conn(sh, meter.MTLS, meter.HTTP2))
	sh.n.process.MeshOpen.Add(1)
	o := sh.serverOptions(d)
	o.Internal, o.Extended = !d.hbone, false
	srv := h2.NewServer(c, handler{sh}, o)
	d.drain, d.burden = srv.Drain, srv
	d.lease = sh.n.certs.Lease(sh.loop, cfg, cs, srv.Drain)
	c.OnWorn(srv.Drain)
	if sh.leaving || d.share.pod.draining.Load() { // begun during the handshake
		srv.Drain()
	}
}

// peerLabel names a peer by the workload at its address, if that one has the identity that was proved, else by the
// identity itself.
func (sh *shard) peerLabel(a netip.Addr, peer mesh.Identity) string {
	t := sh.n.table.Load()
	if w := t.Workload(a); w != nil && w.Identity(t.TrustDomain) == peer {
		return w.Label()
	}
	return peer.Namespace + "/" + peer.ServiceAccount
}

// arrival is what the head of a stream on a link says; it is kept in Head.Route.
type arrival struct {
	tunnel bool
	dst    netip.AddrPort // of a tunnel
	port   uint16         // of an HTTP request
	major  int
	client netip.AddrPort // claimed
	grpc   bool
	bad    string // what is wrong with it
}

// routeMesh decides where a stream from another proxy goes.
func (sh *shard) routeMesh(c *call) {
	d, req := c.down, c.S.Req
	gen := sh.n.table.Load().Generation
	a, ok := req.Route.(*arrival)
	if !ok || req.RouteGen != gen {
		a = readArrival(req, d.hbone)
		req.Route, req.RouteGen = a, gen
	}
	c.GRPC, c.Tunnel = a.grpc, a.tunnel
	client := believe(a.client, d.client)
	dst, major := netip.AddrPortFrom(d.dst.Addr(), a.port), a.major
	if a.tunnel {
		dst = a.dst
	}
	sh.countIn(c)
	c.Attempts++
	switch {
	case a.bad != "":
		c.fail(400, mesh.ReasonBadRequest, a.bad)
	case !slices.Contains(d.share.pod.record().Addrs, dst.Addr()) && dst.Addr() != d.dst.Addr():
		c.fail(403, mesh.ReasonNotMeshTarget, dst.String()+" is not an address of this pod")
	case dst.Port() == sh.n.o.MeshPort:
		c.fail(403, mesh.ReasonNotMeshTarget, "the mesh port cannot be reached through itself")
	default:
		sh.toApp(c, d.share.pod, dst, client, major)
	}
}

// believe is the client of a stream: what the peer claims, if it claims to be itself, else the peer.
func believe(claimed, peer netip.AddrPort) netip.AddrPort {
	if claimed.Addr() == peer.Addr() {
		return claimed
	}
	return peer
}

func readArrival(req *exchange.Head, hbone bool) *arrival {
	a := &arrival{tunnel: req.Method == "CONNECT" && req.Protocol == "", grpc: req.GRPC()}
	if a.tunnel {
		dst, err := netip.ParseAddrPort(req.Authority)
		if err != nil || dst.Addr().Zone() != "" {
			a.bad = "CONNECT needs IP:PORT as its authority"
		}
		a.dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	} else if hbone {
		a.bad = "HBONE carries CONNECT only"
	} else if !a.destination(req.Get(dstField)) {
		a.bad = dstField + " is missing or malformed"
	}
	if s := req.Get(clientField); s != "" {
		if c, err := netip.ParseAddrPort(s); err == nil && c.Addr().Zone() == "" {
			a.client = netip.AddrPortFrom(c.Addr().Unmap(), c.Port())
		}
	}
	return a
}

// destination reads the value of dstField.
func (a *arrival) destination(s string) bool {
	port, proto, ok := strings.Cut(s, "/")
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil || n == 0 {
		return false
	}
	a.port = uint16(n)
	switch mesh.Protocol(proto) {
	case mesh.HTTP1:
		a.major = 1
	case mesh.HTTP2:
		a.major = 2
	default:
		return false
	}
	return true
}

// linkFields are the fields for a request from d to port of an application; they are shared and never change.
func (d *down) linkFields(port uint16, major int) []hpack.HeaderField {
	if d.extra.f == nil || d.extra.port != port || d.extra.major != major {
		proto := mesh.HTTP1
		if major == 2 {
			proto = mesh.HTTP2
		}
		d.extra = extraFields{port: port, major: major, f: []hpack.HeaderField{
			{Name: dstField, Value: strconv.Itoa(int(port)) + "/" + string(proto)},
			{Name: clientField, Value: d.client.String()},
		}}
	}
	return d.extra.f
}

// tunnelFields are the fields for an opaque connection from d.
func (d *down) tunnelFields() []hpack.HeaderField {
	return []hpack.HeaderField{{Name: clientField, Value: d.client.String()}}
}
