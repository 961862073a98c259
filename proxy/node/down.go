package node

import (
	"net/netip"
	"time"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/detect"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/front"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/sock"
	"conduit.io/conduit/proxy/trip"

	"golang.org/x/net/http2/hpack"
)

// kind is the pipeline that an accepted connection takes.
type kind uint8

const (
	outbound     kind = iota // from the pod's application
	inboundMesh              // from another proxy, with mTLS
	inboundPlain             // from anybody, in plaintext
)

// down is an accepted connection.
type down struct {
	prev, next *down // in share.downs

	share   *share
	conn    flow.Conn
	kind    kind
	hbone   bool           // inboundMesh: the peer speaks HBONE, not conduit/1
	isHTTP  bool           // the client speaks HTTP
	refused bool           // plaintext, and not wanted any more
	client  netip.AddrPort // the other end
	dst     netip.AddrPort // what it dialled
	target  *target        // outbound
	label   *labels        // series for what comes in on an inbound connection
	queued  time.Duration  // how long it waited to be accepted; negative: unknown, or counted
	conns   *meter.Conns   // series in which the connection is counted as open
	src     string         // inbound: label of the client
	front   *front.Front   // nil before there is one, and for what needs none
	notes   trip.Notes     // to the proxy at the other end
	burden  exchange.Burden
	drain   func()     // ends the connection gracefully; nil before there is a codec
	lease   flow.Timer // of an mTLS link: until its certificates expire

	// The last upstream group, and the last fields sent to another proxy: both are nearly always the next ones too.
	lastKey poolKey
	last    *group
	extra   extraFields
}

// extraFields is a memo of the fields that tell another proxy where a request goes.
type extraFields struct {
	port  uint16
	major int
	f     []hpack.HeaderField
}

// accept takes a connection from a listener of a pod.
func (sh *shard) accept(s *share, slot api.Slot, c *sock.Conn) {
	d := &down{share: s, conn: c, client: c.RemoteAddr(), dst: c.LocalAddr(), queued: sh.desk.Queued(c)}
	s.add(d)
	sh.n.process.Accepted.Add(1)
	sh.n.process.Open.Add(1)
	switch {
	case outward(slot):
		d.kind = outbound
		if !sh.lookUp(d) {
			sh.serveOutbound(d)
		}
	case d.dst.Port() == sh.n.o.MeshPort:
		d.kind = inboundMesh
		sh.serveMesh(d, c)
	default:
		d.kind = inboundPlain
		sh.servePlain(d)
	}
}

// stale has the destination of d resolved anew.
func (d *down) stale() {
	if d.target != nil {
		d.target.gen = 0
	}
}

// usher has d's client end the connection, where its protocol has words for that, and come again: there is time.
func (d *down) usher() {
	if d.front != nil {
		d.front.Usher()
	} else if d.drain != nil {
		d.drain()
	}
}

// opened counts on c what is known of the way here.
func (d *down) opened(c *meter.Conns) {
	if d.queued >= 0 {
		c.Accepted(int64(d.queued))
		d.queued = -1
	}
}

// closed is the last that is heard of a connection.
func (sh *shard) closed(d *down, err error) {
	if d.share == nil {
		return
	}
	d.share.drop(d)
	d.share = nil
	sh.n.process.Open.Add(-1)
	if d.lease != nil {
		d.lease.Stop()
	}
	if d.kind == inboundMesh && d.drain != nil {
		sh.n.process.MeshOpen.Add(-1)
	}
	if d.conns != nil {
		d.conns.Closed(sh.loop.Now(), mesh.ReasonNone)
	}
	if err != nil {
		sh.n.o.Log.Debug("connection ended", "client", d.client, "destination", d.dst, "error", err)
	}
}

// refuse resets a connection that may not be served.
func (sh *shard) refuse(d *down, reason mesh.Reason) {
	sh.n.process.ConnectionFailed(reason)
	sh.n.o.Log.Debug("connection refused", "client", d.client, "destination", d.dst, "reason", string(reason))
	d.conn.SetReceiver(ending{sh, d})
	d.conn.Abort()
}

// ending is the receiver of a connection that nobody serves.
type ending struct {
	sh *shard
	d  *down
}

func (ending) Data([]byte)        {}
func (ending) EOF()               {}
func (ending) Drained()           {}
func (e ending) Closed(err error) { e.sh.closed(e.d, nil) }

// serverOptions are what every codec of d gets.
func (sh *shard) serverOptions(d *down) exchange.ServerOptions {
	return exchange.ServerOptions{
		Clock: sh.loop, Pool: sh.streams, Conn: d, Extended: true,
		OnClose: func(err error) { sh.closed(d, err) },
		OnViolation: func(v exchange.Violation) {
			sh.n.process.Abused(v.Abuse)
			sh.n.o.Log.Debug("protocol violation", "client", d.client, "destination", d.dst, "reason", string(v.Reason), "abuse", string(v.Abuse), "detail", v.Detail)
		},
	}
}

func (sh *shard) serveOutbound(d *down) {
	t := sh.resolve(d)
	o := front.Options{Handler: handler{sh}, Server: sh.serverOptions(d), Protocol: mesh.Detect}
	switch {
	case !t.known, t.protocol == mesh.Opaque:
		o.Protocol = mesh.Opaque
	default:
		sh.detectAs(&o, d, t.protocol)
	}
	f := front.Serve(d.conn, o)
	d.front, d.drain, d.burden = f, f.Drain, f
}

// detectAs prepares the choice of a codec, given what is declared and what was learnt.
func (sh *shard) detectAs(o *front.Options, d *down, declared mesh.Protocol) {
	dst := d.dst
	o.Chosen = func(p mesh.Protocol) {
		d.isHTTP = p != mesh.Opaque
		sh.memory.Put(dst, verdict(p))
	}
	if declared == mesh.HTTP1 || declared == mesh.HTTP2 {
		// Which of the two, and whether at all, the bytes say: a client that does something else is not broken by
		// what somebody has written into a Service.
		o.ClientFirst = true
		return
	}
	if v := sh.memory.Get(dst); v == detect.HTTP1 || v == detect.HTTP2 {
		o.Wait = trip.ClientFirst
	}
}

func verdict(p mesh.Protocol) detect.Verdict {
	switch p {
	case mesh.HTTP1:
		return detect.HTTP1
	case mesh.HTTP2:
		return detect.HTTP2
	}
	return detect.Opaque
}

func (sh *shard) servePlain(d *down) {
	w := d.share.pod.record()
	if w.Mode != mesh.Permissive {
		sh.n.process.RefusedPlaintext.Add(1)
		sh.refuse(d, mesh.ReasonPlaintext)
		return
	}
	sh.notice(d.client.Addr())
	d.src = sh.clientLabel(d.client.Addr())
	declared := sh.n.table.Load().Declared(d.dst)
	o := front.Options{Handler: handler{sh}, Server: sh.serverOptions(d), Protocol: mesh.Detect}
	if declared == mesh.Opaque {
		o.Protocol = mesh.Opaque
	} else {
		sh.detectAs(&o, d, declared)
	}
	f := front.Serve(d.conn, o)
	d.front, d.drain, d.burden = f, f.Drain, f
}

// clientLabel names whoever has address a.
func (sh *shard) clientLabel(a netip.Addr) string {
	if w := sh.n.table.Load().Workload(a); w != nil {
		return w.Label()
	}
	return "unknown"
}
