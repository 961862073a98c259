package static

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/front"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/pool"
	"conduit.io/conduit/proxy/shed"
	"conduit.io/conduit/proxy/sock"
	"conduit.io/conduit/proxy/trip"
)

const (
	dialTimeout = 5 * time.Second
	sweepEvery  = 30 * time.Second
	maxSeries   = 1000
	maxConns    = 4096
	maxWaiting  = 65536
)

// Server serves a Config on one loop.
type Server struct {
	loop    *loop.Loop
	log     *slog.Logger
	process meter.Process
	set     *meter.Set
	desk    trip.Desk
	streams *exchange.Pool
	fronts  []*listener
	free    *call
	nfree   int
	warned  []int // how often, of each certificate of process
	ready   atomic.Bool
	leaving bool // Shutdown has begun
}

// listener is one entry of Config.Listeners at work.
type listener struct {
	srv      *Server
	cfg      Listener
	sock     *sock.Listener
	pools    [poolKinds]*pool.Pool
	requests [meter.Protocols]*meter.Requests
	carried  [meter.Protocols]*meter.Conns
	conns    map[*conn]struct{}
	http     bool // the last connection was HTTP
}

// poolKind is what is spoken to the upstream; auto is for the TLS handshake to choose.
type poolKind uint8

const (
	auto poolKind = iota
	viaHTTP1
	viaHTTP2
	poolKinds // how many there are
)

// conn is an accepted connection.
type conn struct {
	l      *listener
	counts *meter.Conns  // in which it is counted as open
	queued time.Duration // how long it waited to be accepted; negative: unknown, or counted
	link   bool          // to another proxy
	notes  trip.Notes    // for it
	front  *front.Front  // nil when the protocol was certain
	drain  func()
	burden exchange.Burden // nil while it shakes hands
	client netip.Addr
}

// Start opens every listener of cfg and serves on l, which is running or will be. On an error nothing is left open.
func Start(l *loop.Loop, cfg *Config, log *slog.Logger) (*Server, error) {
	s := &Server{loop: l, log: log, set: meter.NewSet(maxSeries), streams: exchange.NewPool()}
	s.desk = trip.Desk{Loop: l, Book: meter.NewBook(l), Process: &s.process, Log: log, Spare: s.spare}
	for _, lc := range cfg.Listeners {
		s.process.Certificates = append(s.process.Certificates, lc.Certificates...)
	}
	s.warned = make([]int, len(s.process.Certificates))
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close() // sock.Listen keeps duplicates
		}
	}()
	for i, lc := range cfg.Listeners {
		f, err := openListener(lc.Address)
		if err != nil {
			return nil, fmt.Errorf("listeners[%d].address: %w", i, err)
		}
		files = append(files, f)
	}
	var err error
	if e := l.Do(func() { err = s.open(cfg, files) }); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	s.ready.Store(true)
	return s, nil
}

// openListener opens a TCP socket and gives its descriptor.
func openListener(a netip.AddrPort) (*os.File, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // which hands no socket options down to accepted connections
	l, err := lc.Listen(context.Background(), "tcp", a.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

func (s *Server) open(cfg *Config, files []*os.File) error {
	for i, lc := range cfg.Listeners {
		l := &listener{srv: s, cfg: lc, conns: map[*conn]struct{}{}}
		sl, err := sock.Listen(s.loop, files[i], l.accept)
		if err != nil {
			for _, l := range s.fronts {
				l.sock.Close()
			}
			return err
		}
		sl.Short = s.desk.Short
		l.sock = sl
		if lc.Address.Addr().IsLoopback() {
			sl.Near()
		}
		s.fronts = append(s.fronts, l)
		addr := sl.Addr()
		s.log.Info("listening", "address", addr.String(), "upstream", lc.Upstream.String(), "protocol", string(lc.Protocol))
	}
	s.warnOfEnds(time.Now())
	s.loop.After(sweepEvery, s.sweep)
	shed.Watch(s.loop, s.streams, s.each)
	return nil
}

func (s *Server) sweep() {
	for _, l := range s.fronts {
		for _, p := range l.pools {
			if p != nil {
				p.Sweep()
			}
		}
	}
	s.set.Sweep(s.loop.Now())
	s.warnOfEnds(time.Now())
	s.loop.After(sweepEvery, s.sweep)
}

func (s *Server) spare() (some bool) {
	for _, l := range s.fronts {
		for _, p := range l.pools {
			some = p != nil && p.Spare() || some
		}
	}
	return some
}

// each visits the connections of clients that are served.
func (s *Server) each(visit func(owner any, b exchange.Burden)) {
	for _, l := range s.fronts {
		for c := range l.conns {
			if c.burden != nil {
				visit(c.client, c.burden)
			}
		}
	}
}

// Stats is the metrics as Prometheus text.
func (s *Server) Stats() []byte {
	var b bytes.Buffer
	meter.Write(&b, &s.process, s.set.Read(s.loop.Do))
	return b.Bytes()
}

// Ready reports whether the server accepts connections.
func (s *Server) Ready() bool { return s.ready.Load() }

// Shutdown stops accepting and waits until all connections have ended, or for grace.
func (s *Server) Shutdown(grace time.Duration) {
	s.ready.Store(false)
	_ = s.loop.Do(func() {
		s.leaving = true
		for _, l := range s.fronts {
			l.sock.Close() // takes those that wait in its queue
			for c := range l.conns {
				if c.drain != nil {
					c.drain()
				}
			}
		}
	})
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.process.Open.Load() > 0 {
		select {
		case <-deadline.C:
			return
		case <-tick.C:
		}
	}
}

func (l *listener) accept(sc *sock.Conn) {
	c := &conn{l: l, queued: l.srv.desk.Queued(sc), client: sc.RemoteAddr().Addr()}
	l.conns[c] = struct{}{}
	l.srv.process.Accepted.Add(1)
	l.srv.process.Open.Add(1)
	if l.cfg.TLS == nil {
		l.serve(c, sc, l.cfg.Protocol, false)
		return
	}
	sc.StartTLS(l.cfg.TLS, func(err error) {
		if err != nil {
			l.srv.desk.HandshakeFailed(err, "client", sc.RemoteAddr())
			l.closed(c, nil)
			return
		}
		p, link := l.negotiated(sc.TLS())
		l.serve(c, sc, p, link)
	})
}

// negotiated is the protocol of a TLS session: what ALPN says, else what is configured; and whether the client is
// another proxy.
func (l *listener) negotiated(cs *tls.ConnectionState) (p mesh.Protocol, link bool) {
	switch cs.NegotiatedProtocol {
	case mesh.ALPNConduit:
		return mesh.HTTP2, true
	case "h2":
		return mesh.HTTP2, false
	case "http/1.1":
		return mesh.HTTP1, false
	}
	return l.cfg.Protocol, false
}

func (l *listener) serve(c *conn, sc *sock.Conn, p mesh.Protocol, link bool) {
	c.link = link
	o := front.Options{
		Handler: handler{l}, Protocol: p,
		Server: exchange.ServerOptions{
			Clock: l.srv.loop, Pool: l.srv.streams, Conn: c, Internal: link, Extended: true,
			OnClose: func(err error) { l.closed(c, err) },
			OnViolation: func(v exchange.Violation) {
				l.srv.process.Abused(v.Abuse)
				l.srv.log.Debug("protocol violation", "client", sc.RemoteAddr(), "reason", string(v.Reason), "abuse", string(v.Abuse), "detail", v.Detail)
			},
		},
		Chosen: func(p mesh.Protocol) { l.http = p != mesh.Opaque },
		// What is said to an upstream of one HTTP version cannot be passed on as it comes, nor what it says.
		ClientFirst: l.cfg.UpstreamProtocol != mesh.Detect,
	}
	if l.http {
		o.Wait = trip.ClientFirst
	}
	if p == mesh.HTTP1 || p == mesh.HTTP2 {
		l.http = true
		codec := front.HTTP(sc, p, o.Handler, o.Server)
		c.drain, c.burden = codec.Drain, codec
	} else {
		f := front.Serve(sc, o)
		c.front, c.drain, c.burden = f, f.Drain, f
	}
	if l.srv.leaving { // begun during the handshake
		c.drain()
	}
}

// opened counts the connection in, and what is known of its way here.
func (c *conn) opened(on *meter.Conns) {
	on.Opened()
	if c.queued >= 0 {
		on.Accepted(int64(c.queued))
		c.queued = -1
	}
}

func (l *listener) closed(c *conn, err error) {
	if _, ok := l.conns[c]; !ok {
		return
	}
	delete(l.conns, c)
	l.srv.process.Open.Add(-1)
	if c.counts != nil {
		c.counts.Closed(l.srv.loop.Now(), mesh.ReasonNone)
	}
	if err != nil {
		l.srv.log.Debug("connection ended", "listener", l.cfg.Address.String(), "error", err)
	}
}

// key is the labels of what the listener carries.
func (l *listener) key(proto meter.Protocol) meter.Key {
	k := meter.Key{Direction: meter.Outbound, Src: l.cfg.Address.String(), Dst: l.cfg.Upstream.String(), Protocol: proto, TLS: meter.None}
	if l.cfg.Mutual {
		k.TLS = meter.MTLS
	}
	return k
}

// request is the series of requests of a protocol.
func (l *listener) request(proto meter.Protocol) *meter.Requests {
	r := l.requests[proto]
	if r == nil || r.Gone() {
		k := l.key(proto)
		k.Route = meter.DefaultRoute
		r = l.srv.set.Requests(k, l.srv.loop.Now())
		l.requests[proto] = r
	}
	return r
}

// conn is the series of connections of a protocol.
func (l *listener) conn(proto meter.Protocol) *meter.Conns {
	c := l.carried[proto]
	if c == nil || c.Gone() {
		c = l.srv.set.Conns(l.key(proto), l.srv.loop.Now())
		l.carried[proto] = c
	}
	return c
}
