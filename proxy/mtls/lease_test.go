package mtls_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strconv"
	"testing"
	"time"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/mtls"
)

// A session does not outlive the trust in the root that vouched for it: neither side resumes it, and the peer is refused.
func TestResumptionEndsWithTheRoot(t *testing.T) {
	old, fresh := newAuthority(t), newAuthority(t)
	srv, cli := ident("server"), ident("client")
	both := append(append([]byte(nil), old.pem...), fresh.pem...)
	servers := storeOf(t, both, fresh.leaf(t, srv, nil))
	clients := storeOf(t, both, old.leaf(t, cli, nil))
	s := newServer(t, func() *tls.Config { return serverConfig(t, servers, srv) })
	for i, resumed := range []bool{false, true} {
		state, err := s.connect(t, clientConfig(t, clients, cli, srv))
		if o := s.outcome(t); err != nil || o.err != nil || state.DidResume != resumed {
			t.Fatalf("connection %d: client %v, server %v, resumed %v", i, err, o.err, state.DidResume)
		}
	}
	if err := servers.Set(node.Certificates{Roots: fresh.pem}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.connect(t, clientConfig(t, clients, cli, srv)); err == nil {
		t.Error("the client of a root that is gone was served")
	}
	if o := s.outcome(t); !errors.Is(o.err, mtls.ErrUntrusted) {
		t.Errorf("server: %v, want ErrUntrusted", o.err)
	}
}

// A lease ends shortly before the first certificate does, whosever it is; a machine that slept is no later.
func TestLease(t *testing.T) {
	ca := newAuthority(t)
	until := func(d time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotAfter = time.Now().Add(d) }
	}
	for _, c := range []struct{ own, peer, sleep time.Duration }{
		{10 * time.Hour, 24 * time.Hour, 0}, {24 * time.Hour, 10 * time.Hour, 0}, {10 * time.Hour, 24 * time.Hour, 7 * time.Hour},
	} {
		n := flowtest.New()
		slept := time.Duration(0)
		began := time.Now()
		boot := n.Now()
		now := func() time.Time { return began.Add(slept + time.Duration(n.Now()-boot)) }
		st := mtls.New(now)
		if err := st.Set(node.Certificates{Roots: ca.pem, Leaves: []node.Leaf{ca.leaf(t, ident("a"), until(c.own))}}); err != nil {
			t.Fatal(err)
		}
		cfg := serverConfig(t, st, ident("a"))
		leaf := ca.leaf(t, ident("b"), until(c.peer))
		pair, err := tls.X509KeyPair(leaf.Chain, leaf.Key)
		if err != nil {
			t.Fatal(err)
		}
		rang := 0
		st.Lease(n, cfg, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{pair.Leaf}}, func() { rang++ })
		stopped := st.Lease(n, cfg, &tls.ConnectionState{}, func() { t.Error("a lease that was stopped ended") })
		slept = c.sleep
		for now().Before(began.Add(10*time.Hour - 6*time.Minute)) {
			if rang > 0 {
				t.Fatalf("%+v: it ended at %v", c, now().Sub(began))
			}
			n.Advance(time.Minute)
		}
		stopped.Stop()
		for now().Before(began.Add(10 * time.Hour)) {
			n.Advance(time.Minute)
		}
		if rang != 1 {
			t.Errorf("%+v: it ended %d times", c, rang)
		}
	}
}

// Sessions are kept for a bounded number of peers, each apart from the others'.
func TestSessionsAreBounded(t *testing.T) {
	ca := newAuthority(t)
	own := ident("client")
	st := storeOf(t, ca.pem, ca.leaf(t, own, nil))
	seen := map[tls.ClientSessionCache]bool{}
	for i := range 1000 {
		seen[clientConfig(t, st, own, ident("server"+strconv.Itoa(i))).ClientSessionCache] = true
	}
	if n := st.Peers(own); n == 0 || n > 256 || len(seen) != 1000 {
		t.Errorf("sessions of %d peers are kept, in %d caches for 1000", n, len(seen))
	}
}
