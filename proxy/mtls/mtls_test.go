package mtls_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/mtls"
	"conduit.io/conduit/proxy/sock"
	"conduit.io/conduit/tests/leak"
)

// TestMain fails when a test leaves a descriptor or a goroutine behind.
func TestMain(m *testing.M) {
	os.Exit(leak.Main(m))
}

// authority is a root.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// leaf makes a certificate for id; edit may spoil it.
func (a *authority) leaf(t testing.TB, id mesh.Identity, edit func(*x509.Certificate)) node.Leaf {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{id.URL()}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if edit != nil {
		edit(tmpl)
	}
	key := newKey(t)
	parent, signer := a.cert, a.key
	if a.cert == nil { // nobody: self-signed
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return node.Leaf{Identity: id, Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})}
}

func ident(sa string) mesh.Identity {
	return mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: sa}
}

func storeOf(t testing.TB, roots []byte, leaves ...node.Leaf) *mtls.Store {
	t.Helper()
	s := mtls.New(nil)
	if err := s.Set(node.Certificates{Roots: roots, Leaves: leaves}); err != nil {
		t.Fatal(err)
	}
	return s
}

// server accepts on loopback with the configuration that cfg gives for each connection; outcomes come in order.
type server struct {
	l    *loop.Loop
	addr netip.AddrPort
	out  chan outcome
}

type outcome struct {
	state *tls.ConnectionState
	err   error
}

func newServer(t testing.TB, cfg func() *tls.Config) *server {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go l.Run(ctx)
	t.Cleanup(func() { cancel(); <-l.Done() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := ln.(*net.TCPListener).File()
	ln.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := &server{l: l, out: make(chan outcome, 100)}
	accept := func(c *sock.Conn) {
		c.StartTLS(cfg(), func(err error) {
			o := outcome{c.TLS(), err}
			if err == nil {
				c.SetReceiver(sink{})
				c.Write([]byte("welcome"))
				c.Close()
			}
			s.out <- o
		})
	}
	_ = l.Do(func() {
		var sl *sock.Listener
		if sl, err = sock.Listen(l, f, accept); err == nil {
			s.addr = sl.Addr()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type sink struct{}

func (sink) Data([]byte)  {}
func (sink) EOF()         {}
func (sink) Drained()     {}
func (sink) Closed(error) {}

// connect has a Conn of its own as the client; it returns how its connection began and how it ended.
func (s *server) connect(t testing.TB, cfg *tls.Config) (*tls.ConnectionState, error) {
	t.Helper()
	ended := make(chan error, 1)
	var state *tls.ConnectionState
	_ = s.l.Do(func() {
		sock.Dial(s.l, sock.DialOptions{Addr: s.addr, TLS: cfg}, func(c *sock.Conn, err error) {
			if err != nil {
				ended <- err
				return
			}
			state = c.TLS()
			c.SetReceiver(&reader{c: c, ended: ended})
		})
	})
	select {
	case err := <-ended:
		return state, err
	case <-time.After(10 * time.Second):
		t.Fatal("the client's connection does not end")
		return nil, nil
	}
}

type reader struct {
	sink
	c     *sock.Conn
	got   string
	ended chan error
}

func (r *reader) Data(p []byte) { r.got += string(p) }
func (r *reader) EOF()          { r.c.CloseWrite() }
func (r *reader) Closed(err error) {
	if err == nil && r.got != "welcome" {
		err = errors.New("no welcome")
	}
	r.ended <- err
}

func (s *server) outcome(t testing.TB) outcome {
	t.Helper()
	select {
	case o := <-s.out:
		return o
	case <-time.After(10 * time.Second):
		t.Fatal("the server's handshake does not end")
		return outcome{}
	}
}

func clientConfig(t testing.TB, s *mtls.Store, own, expect mesh.Identity) *tls.Config {
	t.Helper()
	c, err := s.ClientConfig(own, expect)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func serverConfig(t testing.TB, s *mtls.Store, id mesh.Identity) *tls.Config {
	t.Helper()
	c, err := s.ServerConfig(id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// badClient is a client that a server must not serve, and how it says so.
type badClient struct {
	name   string
	cfg    *tls.Config
	want   error
	reason mesh.Reason
}

// long has n certificates where one would do.
func long(l node.Leaf, n int) node.Leaf {
	l.Chain = bytes.Repeat(l.Chain, n)
	return l
}

// badClients spoil cfg, a good client's configuration for the identity id, each in its own way.
func badClients(t *testing.T, ca *authority, cfg *tls.Config, id mesh.Identity) []badClient {
	other := newAuthority(t)
	foreign := mesh.Identity{TrustDomain: "elsewhere", Namespace: "shop", ServiceAccount: "client"}
	with := func(l node.Leaf) *tls.Config {
		c := cfg.Clone()
		c.ClientSessionCache = nil
		cert, err := tls.X509KeyPair(l.Chain, l.Key)
		if err != nil {
			t.Fatal(err)
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
		return c
	}
	none := with(ca.leaf(t, id, nil))
	none.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	noALPN := with(ca.leaf(t, id, nil))
	noALPN.NextProtos, noALPN.VerifyConnection = nil, nil
	old := with(ca.leaf(t, id, nil))
	old.MinVersion, old.MaxVersion, old.CurvePreferences = tls.VersionTLS12, tls.VersionTLS12, nil
	edit := func(f func(*x509.Certificate)) *tls.Config { return with(ca.leaf(t, id, f)) }
	return []badClient{
		{"nine certificates", with(long(ca.leaf(t, id, nil), 9)), mtls.ErrUntrusted, mesh.ReasonTLS},
		{"no certificate", none, mtls.ErrNoCertificate, mesh.ReasonTLS},
		{"expired", edit(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), mtls.ErrExpired, mesh.ReasonTLS},
		{"not yet valid", edit(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), mtls.ErrExpired, mesh.ReasonTLS},
		{"wrong trust domain", with(ca.leaf(t, foreign, nil)), mtls.ErrTrustDomain, mesh.ReasonPeerIdentity},
		{"two URIs", edit(func(c *x509.Certificate) { c.URIs = append(c.URIs, foreign.URL()) }), mtls.ErrNotWorkload, mesh.ReasonPeerIdentity},
		{"no URI", edit(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"client.shop"} }), mtls.ErrNotWorkload, mesh.ReasonPeerIdentity},
		{"not a SPIFFE ID", edit(func(c *x509.Certificate) { c.URIs[0].Scheme = "https" }), mtls.ErrNotWorkload, mesh.ReasonPeerIdentity},
		{"an authority", edit(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), mtls.ErrNotWorkload, mesh.ReasonPeerIdentity},
		{"not for signatures", edit(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), mtls.ErrNotWorkload, mesh.ReasonPeerIdentity},
		{"self-signed", with((&authority{}).leaf(t, id, nil)), mtls.ErrUntrusted, mesh.ReasonTLS},
		{"another authority", with(other.leaf(t, id, nil)), mtls.ErrUntrusted, mesh.ReasonTLS},
		{"servers only", edit(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), mtls.ErrUntrusted, mesh.ReasonTLS},
		{"no protocol", noALPN, mtls.ErrProtocol, mesh.ReasonTLS},
		{"TLS 1.2", old, nil, mesh.ReasonTLS},
	}
}

func TestServerRejects(t *testing.T) {
	ca := newAuthority(t)
	srv, cli := ident("server"), ident("client")
	st := storeOf(t, ca.pem, ca.leaf(t, srv, nil), ca.leaf(t, cli, nil))
	s := newServer(t, func() *tls.Config { return serverConfig(t, st, srv) })
	good := clientConfig(t, st, cli, srv)
	for _, tc := range badClients(t, ca, good, cli) {
		t.Run(tc.name, func(t *testing.T) {
			_, cerr := s.connect(t, tc.cfg)
			o := s.outcome(t)
			if o.err == nil || (tc.want != nil && !errors.Is(o.err, tc.want)) || sock.Reason(o.err) != tc.reason {
				t.Errorf("server: %v, reason %q; want %v, %q", o.err, sock.Reason(o.err), tc.want, tc.reason)
			}
			if cerr == nil || sock.Reason(cerr) != mesh.ReasonTLS || !strings.Contains(cerr.Error(), "remote error") {
				t.Errorf("client: %v, reason %q; want the server's alert", cerr, sock.Reason(cerr))
			}
			if _, err := s.connect(t, good); err != nil {
				t.Errorf("the next client: %v", err)
			}
			if o := s.outcome(t); o.err != nil {
				t.Errorf("the next client, at the server: %v", o.err)
			} else if id, err := mtls.PeerIdentity(o.state); err != nil || id != cli {
				t.Errorf("PeerIdentity = %v, %v; want %v", id, err, cli)
			}
		})
	}
}

func TestClientRejects(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	srv, cli := ident("server"), ident("client")
	foreign := mesh.Identity{TrustDomain: "elsewhere", Namespace: "shop", ServiceAccount: "server"}
	st := storeOf(t, ca.pem, ca.leaf(t, cli, nil))
	tests := []struct {
		name   string
		leaf   node.Leaf
		roots  []byte
		want   error
		reason mesh.Reason
	}{
		{"somebody else", ca.leaf(t, ident("thief"), nil), ca.pem, nil, mesh.ReasonPeerIdentity},
		{"wrong trust domain", ca.leaf(t, foreign, nil), ca.pem, mtls.ErrTrustDomain, mesh.ReasonPeerIdentity},
		{"nine certificates", long(ca.leaf(t, srv, nil), 9), ca.pem, mtls.ErrUntrusted, mesh.ReasonTLS},
		{"expired", ca.leaf(t, srv, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), ca.pem, mtls.ErrExpired, mesh.ReasonTLS},
		{"another authority", other.leaf(t, srv, nil), other.pem, mtls.ErrUntrusted, mesh.ReasonTLS},
		{"clients only", ca.leaf(t, srv, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }), ca.pem, mtls.ErrUntrusted, mesh.ReasonTLS},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			theirs := storeOf(t, tc.roots, tc.leaf)
			s := newServer(t, func() *tls.Config { return serverConfig(t, theirs, tc.leaf.Identity) })
			_, err := s.connect(t, clientConfig(t, st, cli, srv))
			if err == nil || sock.Reason(err) != tc.reason || (tc.want != nil && !errors.Is(err, tc.want)) {
				t.Errorf("Dial = %v, reason %q; want %v, %q", err, sock.Reason(err), tc.want, tc.reason)
			}
			var ie *mtls.IdentityError
			if tc.want == nil && (!errors.As(err, &ie) || ie.Got != ident("thief") || ie.Want != srv) {
				t.Errorf("Dial = %v, want an IdentityError of thief and server", err)
			}
			if o := s.outcome(t); o.err == nil {
				t.Error("the server's handshake succeeded")
			}
		})
	}
}

func TestSession(t *testing.T) {
	ca := newAuthority(t)
	srv, cli, cli2 := ident("server"), ident("client"), ident("client2")
	st := storeOf(t, ca.pem, ca.leaf(t, srv, nil), ca.leaf(t, cli, nil), long(ca.leaf(t, cli2, nil), 8))
	s := newServer(t, func() *tls.Config { return serverConfig(t, st, srv) })
	again := func(own mesh.Identity, resumed bool, when string) {
		t.Helper()
		state, err := s.connect(t, clientConfig(t, st, own, srv))
		o := s.outcome(t)
		if err != nil || o.err != nil {
			t.Fatalf("%s: client %v, server %v", when, err, o.err)
		}
		if state.DidResume != resumed || o.state.DidResume != resumed {
			t.Errorf("%s: resumed %v, %v; want %v", when, state.DidResume, o.state.DidResume, resumed)
		}
		if id, err := mtls.PeerIdentity(o.state); err != nil || id != own {
			t.Errorf("%s: PeerIdentity = %v, %v; want %v", when, id, err, own)
		}
		if state.CurveID != tls.X25519MLKEM768 || state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != mesh.ALPNConduit {
			t.Errorf("%s: curve %v, version %x, ALPN %q", when, state.CurveID, state.Version, state.NegotiatedProtocol)
		}
	}
	set := func(c node.Certificates) {
		t.Helper()
		if err := st.Set(c); err != nil {
			t.Fatal(err)
		}
	}
	again(cli, false, "first")
	again(cli, true, "second")
	again(cli2, false, "another identity")
	set(node.Certificates{Roots: ca.pem})
	again(cli, true, "the same roots again")
	set(node.Certificates{Leaves: []node.Leaf{ca.leaf(t, srv, nil)}})
	again(cli, false, "new certificate of the server")
	again(cli, true, "and again")
	set(node.Certificates{Leaves: []node.Leaf{ca.leaf(t, cli, nil)}})
	again(cli, false, "new certificate of the client")
	again(cli, true, "and again")
	set(node.Certificates{Roots: append(newAuthority(t).pem, ca.pem...)})
	again(cli, false, "new roots beside the old")
	clients := [2]any{clientConfig(t, st, cli, srv), clientConfig(t, st, cli, srv)}
	servers := [2]any{serverConfig(t, st, srv), serverConfig(t, st, srv)}
	if clients[0] != clients[1] || servers[0] != servers[1] {
		t.Error("configurations are made anew each time")
	}
}

func TestResumptionIsVerified(t *testing.T) {
	now := time.Now()
	clock := make(chan time.Time, 1)
	clock <- now
	read := func() time.Time { v := <-clock; clock <- v; return v }
	ca := newAuthority(t)
	srv, cli := ident("server"), ident("client")
	st := mtls.New(read)
	short := ca.leaf(t, cli, func(c *x509.Certificate) { c.NotAfter = now.Add(time.Minute) })
	if err := st.Set(node.Certificates{Roots: ca.pem, Leaves: []node.Leaf{ca.leaf(t, srv, nil), short}}); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, func() *tls.Config { return serverConfig(t, st, srv) })
	if _, err := s.connect(t, clientConfig(t, st, cli, srv)); err != nil {
		t.Fatal(err)
	}
	s.outcome(t)
	<-clock
	clock <- now.Add(2 * time.Minute)
	if _, err := s.connect(t, clientConfig(t, st, cli, srv)); err == nil {
		t.Error("a session of a certificate that has expired since was resumed")
	}
	if o := s.outcome(t); !errors.Is(o.err, mtls.ErrExpired) {
		t.Errorf("server: %v, want ErrExpired", o.err)
	}
}

func TestStoreErrors(t *testing.T) {
	ca := newAuthority(t)
	good, other := ca.leaf(t, ident("a"), nil), ca.leaf(t, ident("b"), nil)
	tests := []struct {
		name string
		c    node.Certificates
		want string
	}{
		{"no roots", node.Certificates{Leaves: []node.Leaf{good}}, "no roots"},
		{"bad roots", node.Certificates{Roots: []byte("junk")}, "no PEM certificate"},
		{"another's key", node.Certificates{Roots: ca.pem, Leaves: []node.Leaf{{Identity: ident("a"), Chain: good.Chain, Key: other.Key}}}, "does not match"},
		{"another's name", node.Certificates{Roots: ca.pem, Leaves: []node.Leaf{{Identity: ident("a"), Chain: other.Chain, Key: other.Key}}}, "expected spiffe://cluster.local/ns/shop/sa/a"},
		{"no key", node.Certificates{Roots: ca.pem, Leaves: []node.Leaf{{Identity: ident("a"), Chain: good.Chain}}}, "key input"},
	}
	for _, tc := range tests {
		s := mtls.New(nil)
		err := s.Set(tc.c)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Set = %v, want %q in it", tc.name, err, tc.want)
		} else if strings.Contains(err.Error(), "PRIVATE KEY-----") {
			t.Errorf("%s: the error has a key in it", tc.name)
		}
		if _, err := s.ServerConfig(ident("a")); !errors.Is(err, mtls.ErrNoLeaf) || sock.Reason(err) != mesh.ReasonNoCertificate {
			t.Errorf("%s: ServerConfig afterwards = %v, want ErrNoLeaf", tc.name, err)
		}
	}
	s := storeOf(t, ca.pem, good)
	if _, err := s.ClientConfig(ident("a"), ident("b")); err != nil {
		t.Errorf("ClientConfig = %v", err)
	}
	s.Remove(ident("a"))
	if _, err := s.ClientConfig(ident("a"), ident("b")); !errors.Is(err, mtls.ErrNoLeaf) {
		t.Errorf("ClientConfig = %v, want ErrNoLeaf", err)
	}
}

func TestStaticFiles(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	leaf := ca.leaf(t, ident("server"), nil)
	cert, key, root := write("cert", leaf.Chain), write("key", leaf.Key), write("ca", ca.pem)
	srv := mtls.Files{Cert: cert, Key: key, CA: root, ALPN: []string{"h2"}}
	cfg, err := srv.Server()
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, func() *tls.Config { return cfg })
	tests := []struct {
		name string
		f    mtls.Files
		ok   bool
	}{
		{"exact", mtls.Files{Cert: cert, Key: key, CA: root, ServerID: ident("server").String(), ALPN: []string{"h2"}}, true},
		{"anybody", mtls.Files{Cert: cert, Key: key, CA: root}, true},
		{"somebody else", mtls.Files{Cert: cert, Key: key, CA: root, ServerID: ident("other").String()}, false},
		{"no certificate", mtls.Files{CA: root}, false},
	}
	for _, tc := range tests {
		c, err := tc.f.Client()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.connect(t, c); (err == nil) != tc.ok {
			t.Errorf("%s: %v, want success %v", tc.name, err, tc.ok)
		}
		if o := s.outcome(t); (o.err == nil) != tc.ok {
			t.Errorf("%s, at the server: %v, want success %v", tc.name, o.err, tc.ok)
		}
	}
	for _, f := range []mtls.Files{{}, {Cert: cert, Key: root}, {Cert: cert, Key: key, CA: key}, {Cert: "absent", Key: key}} {
		if _, err := f.Server(); err == nil {
			t.Errorf("Server of %+v succeeded", f)
		}
	}
	for _, f := range []mtls.Files{{}, {CA: root, ServerID: "spiffe://x"}, {CA: "absent"}} {
		if _, err := f.Client(); err == nil {
			t.Errorf("Client of %+v succeeded", f)
		}
	}
}
