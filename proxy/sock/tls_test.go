package sock

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/loop"
)

// configs are of a server with a certificate of its own making, and of a client that trusts it.
var configs = sync.OnceValues(func() (*tls.Config, *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"server"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	server := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos: []string{"one", "two"}, DynamicRecordSizingDisabled: true, MinVersion: tls.VersionTLS13}
	client := &tls.Config{RootCAs: pool, ServerName: "server", NextProtos: []string{"two"}, DynamicRecordSizingDisabled: true}
	return server, client
})

// secure makes a TLS connection: Go's own client, and a Conn.
func secure(t *testing.T, l *loop.Loop) (*Conn, *tls.Conn, *net.TCPConn) {
	t.Helper()
	server, client := configs()
	c, peer := accepted(t, l)
	done := make(chan error, 1)
	do(t, l, func() { c.StartTLS(server, func(err error) { done <- err }) })
	tc := tls.Client(peer, client)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := recv(t, done); err != nil {
		t.Fatal(err)
	}
	return c, tc, peer
}

// TestTLSClientCertificatesGo: a server looks at the client's certificates when the handshake ends, and keeps none.
func TestTLSClientCertificatesGo(t *testing.T) {
	l := start(t)
	server, client := configs()
	server, client = server.Clone(), client.Clone()
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, client.RootCAs
	client.Certificates = server.Certificates
	type ended struct {
		c  *Conn
		cs *tls.ConnectionState
	}
	done := make(chan ended, 1)
	addr := addrPortOf(t, serve(t, l, func(c *Conn) {
		c.StartTLS(server, func(error) { done <- ended{c, c.TLS()} })
	}))
	up, err := dialed(t, l, DialOptions{Addr: addr, TLS: client})
	if err != nil {
		t.Fatal(err)
	}
	e := recv(t, done)
	if e.cs == nil || len(e.cs.PeerCertificates) != 1 || len(e.cs.VerifiedChains) != 1 {
		t.Fatalf("the handshake ended with %+v", e.cs)
	}
	do(t, l, func() {
		if cs := e.c.TLS(); known && (cs.PeerCertificates != nil || cs.VerifiedChains != nil) {
			t.Errorf("the server's end keeps %d certificates, %d chains", len(cs.PeerCertificates), len(cs.VerifiedChains))
		}
		if cs := up.TLS(); len(cs.PeerCertificates) != 1 || len(cs.VerifiedChains) != 1 {
			t.Errorf("the client's end has %d certificates, %d chains for its tickets", len(cs.PeerCertificates), len(cs.VerifiedChains))
		}
	})
}

func TestTLSPeerClosesFirst(t *testing.T) {
	l := start(t)
	c, tc, _ := secure(t, l)
	msg := bytes.Repeat([]byte("request "), 50_000)
	if _, err := tc.Write(msg[:5]); err != nil { // waits for the receiver
		t.Fatal(err)
	}
	var p *probe
	do(t, l, func() {
		if cs := c.TLS(); cs == nil || cs.NegotiatedProtocol != "two" {
			t.Errorf("TLS() = %+v, want ALPN two", cs)
		}
		p = watch(t, c)
	})
	go func() { _, _ = tc.Write(msg[5:]); _ = tc.CloseWrite() }()
	recv(t, p.eof)
	answer := bytes.Repeat([]byte("answer "), 100_000)
	do(t, l, func() {
		if !bytes.Equal(p.data.Bytes(), msg) {
			t.Errorf("got %d bytes before EOF, want %d", p.data.Len(), len(msg))
		}
		for b := answer; len(b) > 0; {
			n := min(len(b), 7000)
			c.Write(b[:n])
			b = b[n:]
		}
		c.CloseWrite()
	})
	if got := readAll(t, tc); !bytes.Equal(got, answer) {
		t.Errorf("peer read %d bytes, want %d", len(got), len(answer))
	}
	if err := recv(t, p.closed); err != nil {
		t.Errorf("Closed(%v), want nil", err)
	}
}

// TestTLSWaterMarks: what one large write leaves behind is a backlog as well.
func TestTLSWaterMarks(t *testing.T) {
	l := start(t)
	c, tc, _ := secure(t, l)
	var p *probe
	written := 0
	do(t, l, func() {
		p = watch(t, c)
		for c.Backlog() <= flow.HighWater {
			c.Write(make([]byte, 1<<20))
			written += 1 << 20
		}
	})
	go func() { _, _ = io.Copy(io.Discard, tc) }()
	until(t, l, func() bool { return c.Backlog() == 0 })
	do(t, l, func() {
		if p.drains != 1 {
			t.Errorf("Drained %d times after %d bytes, want once", p.drains, written)
		}
		c.Abort()
	})
	recv(t, p.closed)
}

// holder passes some writes, and holds back everything else until release.
type holder struct {
	net.Conn
	pass int
	held []byte
}

func (h *holder) Write(p []byte) (int, error) {
	if h.pass > 0 {
		h.pass--
		return h.Conn.Write(p)
	}
	h.held = append(h.held, p...)
	return len(p), nil
}

// TestTLSReadAhead has the client's first words arrive in one piece with the last of its handshake.
func TestTLSReadAhead(t *testing.T) {
	l := start(t)
	server, client := configs()
	c, peer := accepted(t, l)
	done := make(chan error, 1)
	do(t, l, func() { c.StartTLS(server, func(err error) { done <- err }) })
	h := &holder{Conn: peer, pass: 1} // the ClientHello
	tc := tls.Client(h, client)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	_, _ = tc.Write([]byte("early"))
	_, _ = tc.Write([]byte(" words"))
	_ = tc.CloseWrite()
	_ = peer.SetDeadline(time.Now().Add(patience)) // crypto/tls has shortened it
	if _, err := peer.Write(h.held); err != nil {
		t.Fatal(err)
	}
	if err := recv(t, done); err != nil {
		t.Fatal(err)
	}
	var p *probe
	do(t, l, func() { p = watch(t, c) })
	recv(t, p.eof)
	do(t, l, func() {
		if p.data.String() != "early words" {
			t.Errorf("got %q", p.data.String())
		}
		c.Close()
	})
	_ = peer.Close()
	recv(t, p.closed)
}

func TestTLSWeCloseFirst(t *testing.T) {
	l := start(t)
	c, tc, peer := secure(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c); c.Write([]byte("all")); c.CloseWrite() })
	if got := readAll(t, tc); string(got) != "all" { // io.EOF from crypto/tls
		t.Errorf("peer read %q", got)
	}
	if n, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after close_notify the peer read %d, %v; want FIN", n, err)
	}
	_, _ = tc.Write([]byte("more"))
	_ = tc.CloseWrite()
	if err := recv(t, p.closed); err != nil || !p.gotEOF || p.data.String() != "more" {
		t.Errorf("Closed(%v), EOF %v, %q", err, p.gotEOF, p.data.String())
	}
}

func TestTLSTruncation(t *testing.T) {
	l := start(t)
	c, tc, peer := secure(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c) })
	_, _ = tc.Write([]byte("part"))
	_ = peer.CloseWrite() // FIN without close_notify
	if err := recv(t, p.closed); !errors.Is(err, io.ErrUnexpectedEOF) || p.gotEOF || p.data.String() != "part" {
		t.Errorf("Closed(%v), EOF %v after %q; want ErrUnexpectedEOF and no EOF", err, p.gotEOF, p.data.String())
	}
}

func TestTLSReset(t *testing.T) {
	l := start(t)
	c, _, peer := secure(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c) })
	_ = peer.SetLinger(0)
	peer.Close()
	if err := recv(t, p.closed); !isReset(err) {
		t.Errorf("Closed(%v), want ECONNRESET", err)
	}
}

func TestTLSGarbage(t *testing.T) {
	l := start(t)
	c, tc, peer := secure(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c) })
	_, _ = peer.Write([]byte("\x17\x03\x03\x00\x20this is no ciphertext at all ...!"))
	if err := recv(t, p.closed); err == nil || Reason(err) != mesh.ReasonTLS {
		t.Errorf("Closed(%v), reason %q, want one of TLS", err, Reason(err))
	}
	if _, err := tc.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
		t.Errorf("peer read %v, want the alert bad_record_mac", err)
	}
}

// TestTLSPause counts on probe's complaint about Data while paused; many records are in one read of the kernel, and
// those left over must wait inside.
func TestTLSPause(t *testing.T) {
	l := start(t)
	c, tc, _ := secure(t, l)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var p *probe
	n := 0
	do(t, l, func() {
		p = watch(t, c)
		p.onData = func(b []byte) {
			p.data.Write(b)
			if n++; n%2 == 0 {
				c.Pause()
				l.After(0, c.Resume)
			}
		}
	})
	go func() {
		for b := want; len(b) > 0; b = b[1024:] {
			_, _ = tc.Write(b[:1024])
		}
		_ = tc.Close()
	}()
	recv(t, p.eof)
	do(t, l, func() {
		if !bytes.Equal(p.data.Bytes(), want) {
			t.Errorf("got %d bytes, or other ones; want %d", p.data.Len(), len(want))
		}
		if c.tls.kept != nil || c.tls.full != nil {
			t.Error("an idle connection keeps its buffer")
		}
		c.Close()
	})
	recv(t, p.closed)
}

func TestTLSBothEndsConns(t *testing.T) {
	l := start(t)
	server, client := configs()
	type side struct {
		c   *Conn
		err error
	}
	sides := make(chan side, 2)
	addr := serve(t, l, func(c *Conn) { c.StartTLS(server, func(err error) { sides <- side{c, err} }) })
	do(t, l, func() {
		Dial(l, DialOptions{Addr: addrPortOf(t, addr), TLS: client}, func(c *Conn, err error) { sides <- side{c, err} })
	})
	var probes [2]*probe
	for i := range probes {
		s := recv(t, sides)
		if s.err != nil {
			t.Fatal(s.err)
		}
		do(t, l, func() {
			probes[i] = watch(t, s.c)
			probes[i].onEOF = s.c.CloseWrite
			s.c.Write([]byte("hello"))
		})
	}
	do(t, l, func() { probes[0].c.CloseWrite() })
	for _, p := range probes {
		if err := recv(t, p.closed); err != nil || p.data.String() != "hello" || !p.gotEOF {
			t.Errorf("Closed(%v) after %q, EOF %v", err, p.data.String(), p.gotEOF)
		}
	}
}

func TestHandshakeFailures(t *testing.T) {
	l := start(t)
	server, client := configs()
	serverSide := func(timeout time.Duration, act func(peer *net.TCPConn, c *Conn)) error {
		c, peer := accepted(t, l)
		defer peer.Close()
		done := make(chan error, 1)
		do(t, l, func() { c.startTLS(server, false, timeout, func(err error) { done <- err }) })
		act(peer, c)
		return recv(t, done)
	}
	clientSide := func(timeout time.Duration, cfg *tls.Config, act func(*Conn)) error {
		addr, conns := listen(t, l)
		done := make(chan error, 1)
		do(t, l, func() {
			Dial(l, DialOptions{Addr: addrPortOf(t, addr), TLS: cfg, Timeout: timeout}, func(_ *Conn, err error) { done <- err })
		})
		s := recv(t, conns)
		do(t, l, func() { act(s) })
		err := recv(t, done)
		do(t, l, s.Abort)
		return err
	}
	stranger := client.Clone()
	stranger.RootCAs = x509.NewCertPool()
	short := 50 * time.Millisecond
	tests := []struct {
		name   string
		err    error
		reason mesh.Reason
	}{
		{"silent client", serverSide(short, func(*net.TCPConn, *Conn) {}), mesh.ReasonConnectTimeout},
		{"slow client", serverSide(short, func(p *net.TCPConn, _ *Conn) { _, _ = p.Write([]byte{0x16, 3, 1}) }), mesh.ReasonConnectTimeout},
		{"plaintext client", serverSide(patience, func(p *net.TCPConn, _ *Conn) { _, _ = p.Write([]byte("GET / HTTP/1.1\r\n\r\n")) }), mesh.ReasonTLS},
		{"client leaves", serverSide(patience, func(p *net.TCPConn, _ *Conn) { p.Close() }), mesh.ReasonTLS},
		{"aborted before", serverSide(patience, func(_ *net.TCPConn, c *Conn) { do(t, l, c.Abort) }), mesh.ReasonUpstreamReset},
		{"aborted within", serverSide(patience, func(p *net.TCPConn, c *Conn) {
			_, _ = p.Write([]byte{0x16, 3, 1})
			until(t, l, func() bool { return c.canRead })
			do(t, l, c.Close)
		}), mesh.ReasonUpstreamReset},
		{"silent server", clientSide(short, client, func(*Conn) {}), mesh.ReasonConnectTimeout},
		{"server leaves", clientSide(patience, client, (*Conn).Close), mesh.ReasonTLS},
		{"unknown authority", clientSide(patience, stranger, func(s *Conn) { s.StartTLS(server, func(error) {}) }), mesh.ReasonTLS},
	}
	for _, tc := range tests {
		if tc.err == nil || Reason(tc.err) != tc.reason {
			t.Errorf("%s: %v, reason %q, want %q", tc.name, tc.err, Reason(tc.err), tc.reason)
		}
	}
	until(t, l, func() bool { return serverSlots.idle() && clientSlots.idle() })
}

func (s *limiter) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.active) == 0 && s.waits == 0 && len(s.running) == 0 && len(s.waiting) == 0 && len(s.turns) == 0
}

// TestAbortedHandshakeLeavesTheDescriptor: after Abort, events that are already known must not start a handshake on a
// descriptor that is about to be closed, and whose number the next connection will have.
func TestAbortedHandshakeLeavesTheDescriptor(t *testing.T) {
	l := start(t)
	server, _ := configs()
	c, peer := accepted(t, l)
	var h *handshake
	done := make(chan error, 1)
	do(t, l, func() {
		c.StartTLS(server, func(err error) { done <- err })
		h = c.stage.(*handshake)
		h.ready(loop.Out) // every new descriptor has this event
		if h.begun {
			t.Error("a handshake began although the client has sent nothing")
		}
		c.Abort()
		h.ready(loop.In)
		c.Abort()
		if h.begun || !h.ending {
			t.Errorf("after Abort: begun %v, ending %v", h.begun, h.ending)
		}
	})
	if err := recv(t, done); !errors.Is(err, ErrAborted) {
		t.Errorf("StartTLS = %v, want ErrAborted", err)
	}
	if _, err := peer.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("peer read %v, want a reset", err)
	}
}

// busy takes n turns of s for a peer until the test gives them back.
func (s *limiter) busy(n int, peer netip.Addr) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*handshake
	if s.active == nil {
		s.active, s.running = map[*handshake]struct{}{}, map[netip.Addr]int{}
	}
	for range n {
		h := &handshake{c: &Conn{remote: netip.AddrPortFrom(peer, 1)}}
		all = append(all, h)
		s.active[h] = struct{}{}
		s.running[peer]++
	}
	return func() {
		for _, h := range all {
			s.exit(h)
		}
	}
}

// TestHandshakesWait fills the turns, and has one handshake wait for them.
func TestHandshakesWait(t *testing.T) {
	l := start(t)
	release := serverSlots.busy(maxHandshakes, netip.MustParseAddr("127.0.0.1"))
	server, client := configs()
	c, peer := accepted(t, l)
	late, latePeer := accepted(t, l)
	done, lateDone := make(chan error, 1), make(chan error, 1)
	do(t, l, func() {
		c.StartTLS(server, func(err error) { done <- err })
		late.startTLS(server, false, 20*time.Millisecond, func(err error) { lateDone <- err })
	})
	_, _ = latePeer.Write(helloOf(t))
	tc := tls.Client(peer, client)
	result := make(chan error, 1)
	go func() { result <- tc.Handshake() }()
	if err := recv(t, lateDone); !errors.Is(err, ErrTimeout) {
		t.Errorf("a handshake that waited too long = %v, want ErrTimeout", err)
	}
	if len(done) > 0 {
		t.Error("a handshake ran although all turns are taken")
	}
	until(t, l, func() bool {
		serverSlots.mu.Lock()
		defer serverSlots.mu.Unlock()
		return serverSlots.waits == 1
	})
	release()
	if err := errors.Join(recv(t, done), recv(t, result)); err != nil {
		t.Errorf("the waiting handshake: %v", err)
	}
	do(t, l, c.Abort)
	if !serverSlots.idle() {
		t.Error("turns were lost")
	}
}

func TestTLSRelay(t *testing.T) {
	l := start(t)
	server, client := configs()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	most := 0
	closed := make(chan error, 4)
	forward := func(a *Conn, o DialOptions) {
		Dial(l, o, func(b *Conn, err error) {
			if err != nil {
				t.Error(err)
				return
			}
			join(a, b, &most, func(err error) { closed <- err })
		})
	}
	inner := serve(t, l, func(a *Conn) {
		a.StartTLS(server, func(err error) {
			if err != nil {
				t.Error(err)
				return
			}
			forward(a, DialOptions{Addr: addrPortOf(t, backend.Addr().String())})
		})
	})
	outer := serve(t, l, func(a *Conn) { forward(a, DialOptions{Addr: addrPortOf(t, inner), TLS: client}) })
	exchange(t, func() (net.Conn, error) { return net.Dial("tcp", outer) }, backend.Accept)
	for range 4 {
		if err := recv(t, closed); err != nil {
			t.Errorf("Closed(%v)", err)
		}
	}
	checkBacklog(t, most)
}
