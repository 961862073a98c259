package identity

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	identityv1 "conduit.io/conduit/api/identityv1"
	"conduit.io/conduit/api/identityv1/identityv1connect"
	certs "conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func parseOne(data string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(data))
	if block == nil {
		return nil, errors.New("no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// TestIdentity runs two replicas, agents and a real API server through a life: start, work, misuse, rotations, trouble.
func TestIdentity(t *testing.T) {
	w := newWorld(t)
	a, b := w.replicas[0], w.replicas[1]
	if err := a.Ready(); err == nil {
		t.Error("a replica is ready before there is an issuer")
	}
	endA, endB := w.lead(a), w.lead(b) // for a moment two believe that they lead
	w.eventually("both replicas are ready", func() bool { return a.Ready() == nil && b.Ready() == nil })
	endB()
	defer func() { endA() }()
	ta, _ := a.authority.trust()
	tb, _ := b.authority.trust()
	if ta.revision() != tb.revision() || len(ta.roots) != 1 {
		t.Fatalf("the replicas trust %d and %d roots, revisions %s and %s", len(ta.roots), len(tb.roots), ta.revision(), tb.revision())
	}
	t.Run("certify", func(t *testing.T) { testCertify(t, w) })
	t.Run("refuse", func(t *testing.T) { testRefuse(t, w) })
	t.Run("tokens age out", func(t *testing.T) { testTokensAgeOut(t, w) })
	t.Run("rotation", func(t *testing.T) { testRotation(t, w) })
	t.Run("broken issuers", func(t *testing.T) { testBroken(t, w) })
	t.Run("bundle by hand", func(t *testing.T) { testByHand(t, w) })
	t.Run("distrust", func(t *testing.T) { testDistrust(t, w) })
	t.Run("expiry", func(t *testing.T) { testExpiry(t, w) })
	t.Run("no secret is logged", func(t *testing.T) { testLogs(t, w) })
}

func testCertify(t *testing.T, w *world) {
	one, two := w.agent(w.replicas[0], "n1"), w.agent(w.replicas[1], "n2")
	web, api := identityOf("shop", "web"), identityOf("shop", "api")
	for _, x := range []struct {
		a  *agent
		id mesh.Identity
	}{{one, web}, {two, api}} {
		if err := x.a.Await(t.Context(), x.id); err != nil {
			t.Fatal(err)
		}
		leaf := x.a.Leaves()[0]
		if _, err := w.verify(leaf.Chain, w.replicas[0].roots0()); err != nil || leaf.Identity != x.id {
			t.Errorf("%s: %v", leaf.Identity, err)
		}
		if life := leaf.NotAfter.Sub(w.clock.now()); life > certs.LeafLife || life < certs.LeafLife-time.Minute {
			t.Errorf("%s lives for %v", x.id, life)
		}
	}
	if got := one.Certify(t.Context(), []mesh.Identity{api}).Issued[0]; got.Err == nil || !strings.Contains(got.Err.Error(), "REASON_NOT_ON_NODE") {
		t.Errorf("another node's pod: %v", got.Err)
	}
	w.pod("shop", "late-1", "late", "n1")
	if err := one.Await(t.Context(), identityOf("shop", "late")); err != nil {
		t.Errorf("a pod that came later: %v", err)
	}
}

func (r *replica) roots0() []byte {
	b, _ := r.authority.trust()
	return b.pem()
}

// bearer sends every request with one token.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// call asks a replica as whoever has the token.
func (w *world) call(r *replica, token string) identityv1connect.IdentityServiceClient {
	c := r.TLSConfig()
	c.GetCertificate = nil
	c.RootCAs = x509.NewCertPool()
	c.RootCAs.AppendCertsFromPEM(r.roots0())
	c.ServerName = "conduit-controller.conduit.svc" // as people do, who know it by its DNS name
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
	w.t.Cleanup(tr.CloseIdleConnections)
	return identityv1connect.NewIdentityServiceClient(&http.Client{Transport: bearer{token, tr}}, r.url)
}

func request(t *testing.T, id mesh.Identity) *identityv1.CertificateRequest {
	t.Helper()
	_, csr, err := certs.NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	return &identityv1.CertificateRequest{Identity: id.String(), Csr: csr}
}

func testRefuse(t *testing.T, w *world) {
	good := testTokens(t, w)
	testRequests(t, w, w.call(w.replicas[0], good))
	var m bytes.Buffer
	w.replicas[0].WriteMetrics(&m)
	for _, line := range []string{`conduit_identity_refused_total{reason="replayed"} 1`, `conduit_identity_refused_total{reason="trust-domain"} 1`,
		`conduit_identity_refused_total{reason="csr-size"} 1`, `conduit_identity_refused_total{reason="csr-name"} 1`,
		`conduit_identity_refused_total{reason="refused-token"} 4`, `conduit_identity_refused_total{reason="bad-identity"} 2`, "conduit_issuer_usable 1"} {
		if !strings.Contains(m.String(), line+"\n") {
			t.Errorf("metrics lack %s:\n%s", line, m.String())
		}
	}
	testReplays(t, w, w.call(w.replicas[0], good))
}

// testTokens sends tokens that are refused, and returns one that is not.
func testTokens(t *testing.T, w *world) (good string) {
	r := w.replicas[0]
	good = w.token("conduit", AgentAccount, "conduit-agent-n1", Audience)
	web := identityOf("shop", "web")
	forged := []byte(good)
	forged[len(forged)-10] ^= 1
	for _, tt := range []struct {
		name, token string
		code        connect.Code
	}{
		{"no token", "", connect.CodeUnauthenticated},
		{"rubbish", "abc", connect.CodeUnauthenticated},
		{"rubbish of the right shape", "a.b.c", connect.CodeUnauthenticated},
		{"forged", string(forged), connect.CodeUnauthenticated},
		{"of another audience", w.token("conduit", AgentAccount, "conduit-agent-n1", "other"), connect.CodeUnauthenticated},
		{"for the API server", w.token("conduit", AgentAccount, "conduit-agent-n1", "https://kubernetes.default.svc.cluster.local"), connect.CodeUnauthenticated},
		{"of another account", w.token("shop", "web", "web-1", Audience), connect.CodePermissionDenied},
		{"of no pod", w.token("conduit", AgentAccount, "", Audience), connect.CodePermissionDenied},
		{"huge", strings.Repeat("a", 20<<10), connect.CodeUnauthenticated},
	} {
		_, err := w.call(r, tt.token).Certify(t.Context(), &identityv1.CertifyRequest{Requests: []*identityv1.CertificateRequest{request(t, web)}})
		if connect.CodeOf(err) != tt.code {
			t.Errorf("token %s: %v; want %v", tt.name, err, tt.code)
		}
		if _, err := w.call(r, tt.token).GetRoots(t.Context(), &identityv1.GetRootsRequest{}); err != nil {
			t.Errorf("the roots are public: %v", err)
		}
	}
	return good
}

// testRequests sends requests that are refused, together with one that is not.
func testRequests(t *testing.T, w *world, c identityv1connect.IdentityServiceClient) {
	web := identityOf("shop", "web")
	used := request(t, web)
	other := request(t, identityOf("shop", "api"))
	foreign := request(t, mesh.Identity{TrustDomain: "other.example", Namespace: "shop", ServiceAccount: "web"})
	swapped := &identityv1.CertificateRequest{Identity: web.String(), Csr: other.Csr}
	large := &identityv1.CertificateRequest{Identity: web.String(), Csr: make([]byte, certs.MaxRequest+1)}
	res, err := c.Certify(t.Context(), &identityv1.CertifyRequest{Requests: []*identityv1.CertificateRequest{used, other, foreign, swapped,
		large, {Identity: "spiffe://x", Csr: used.Csr}, used, {}}})
	if err != nil {
		t.Fatal(err)
	}
	want := []identityv1.Refusal_Reason{0, identityv1.Refusal_REASON_NOT_ON_NODE, identityv1.Refusal_REASON_TRUST_DOMAIN,
		identityv1.Refusal_REASON_BAD_REQUEST, identityv1.Refusal_REASON_BAD_REQUEST, identityv1.Refusal_REASON_BAD_REQUEST,
		identityv1.Refusal_REASON_REPLAYED, identityv1.Refusal_REASON_BAD_REQUEST}
	for i, result := range res.GetResults() {
		if got := result.GetRefusal().GetReason(); got != want[i] || (got == 0) != (result.GetCertificate() != nil) {
			t.Errorf("request %d: %v %q, want %v", i, got, result.GetRefusal().GetMessage(), want[i])
		}
	}
	if _, err := c.Certify(t.Context(), &identityv1.CertifyRequest{Requests: make([]*identityv1.CertificateRequest, maxRequests+1)}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("too many requests: %v", err)
	}
	huge := &identityv1.CertifyRequest{Requests: []*identityv1.CertificateRequest{{Identity: web.String(), Csr: make([]byte, MaxMessage)}}}
	if _, err := c.Certify(t.Context(), huge); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a huge message: %v", err)
	}
}

// testReplays: the same refusal of the same caller is logged once.
func testReplays(t *testing.T, w *world, c identityv1connect.IdentityServiceClient) {
	used := &identityv1.CertifyRequest{Requests: []*identityv1.CertificateRequest{request(t, identityOf("shop", "web"))}}
	for range 20 {
		if _, err := c.Certify(t.Context(), used); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(w.logs.String(), "reason=replayed"); n != 1 {
		t.Errorf("replays of one caller were logged %d times, want once", n)
	}
}

func testTokensAgeOut(t *testing.T, w *world) {
	r := w.replicas[1]
	w.pod("conduit", "conduit-agent-gone", AgentAccount, "n1")
	token := w.token("conduit", AgentAccount, "conduit-agent-gone", Audience)
	c := w.call(r, token)
	ask := func() error {
		_, err := c.Certify(t.Context(), &identityv1.CertifyRequest{Requests: []*identityv1.CertificateRequest{request(t, identityOf("shop", "web"))}})
		return err
	}
	before := r.counts.reviews.Load()
	for range 5 {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.counts.reviews.Load() - before; n != 1 {
		t.Errorf("the API server was asked %d times about one token", n)
	}
	zero := int64(0)
	if err := w.client.CoreV1().Pods("conduit").Delete(t.Context(), "conduit-agent-gone", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(500 * time.Millisecond) // the API server itself believes a token for ten seconds
	defer tick.Stop()
	for range 60 {
		w.clock.advance(DefaultTokenLife + time.Second)
		if connect.CodeOf(ask()) == connect.CodeUnauthenticated {
			return
		}
		<-tick.C
	}
	t.Error("the token of a deleted pod is still believed")
}

// certManager is what cert-manager puts into a Secret: an RSA intermediate under a root of its own.
func (w *world) certManager(t *testing.T) map[string][]byte {
	t.Helper()
	now := w.clock.now()
	make1 := func(name string, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer, []byte) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(90 * 24 * time.Hour)}
		if parent == nil {
			parent, parentKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	root, rootKey, rootPEM := make1("root "+rand.Text(), nil, nil)
	_, key, certPEM := make1("intermediate", root, rootKey)
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key.(*rsa.PrivateKey))})
	return map[string][]byte{corev1.TLSCertKey: certPEM, corev1.TLSPrivateKeyKey: keyPEM, rootsKey: rootPEM}
}

func (w *world) hand(t *testing.T, data map[string][]byte) {
	t.Helper()
	s, err := w.client.CoreV1().Secrets("conduit").Get(t.Context(), IssuerSecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Data = data
	if _, err := w.client.CoreV1().Secrets("conduit").Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// craving asks for certificates all the time, for two agents.
type craving struct {
	stop chan bool
	wg   sync.WaitGroup

	mu       sync.Mutex
	seen     map[string]int // certificates by root
	failures map[string]int
}

// crave begins. Each certificate is checked with the roots that the other agent knows by then.
func (w *world) crave(one, two *agent) *craving {
	c := &craving{stop: make(chan bool), seen: map[string]int{}, failures: map[string]int{}}
	for _, x := range []struct {
		a, peer *agent
		id      mesh.Identity
	}{{one, two, identityOf("shop", "web")}, {two, one, identityOf("shop", "api")}} {
		c.wg.Go(func() {
			tick := time.NewTicker(150 * time.Millisecond) // within what one node may have looked up
			defer tick.Stop()
			for {
				select {
				case <-c.stop:
					return
				case <-tick.C:
				}
				got := x.a.Certify(w.t.Context(), []mesh.Identity{x.id}).Issued[0]
				root, err := "", got.Err
				if err == nil {
					root, err = w.verify(got.Leaf.Chain, x.peer.Roots())
				}
				c.mu.Lock()
				if err != nil {
					c.failures[err.Error()]++
				} else {
					c.seen[root]++
				}
				c.mu.Unlock()
			}
		})
	}
	return c
}

func (c *craving) under(root *x509.Certificate) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[fingerprint(root.Raw)]
}

func (c *craving) end() (seen, failures map[string]int) {
	close(c.stop)
	c.wg.Wait()
	return c.seen, c.failures
}

// testRotation replaces the issuer, twice, while certificates are asked for all the time: no call fails, and everybody
// knows the root of every certificate by the time that it is signed.
func testRotation(t *testing.T, w *world) {
	one, two := w.agent(w.replicas[0], "n1"), w.agent(w.replicas[1], "n2")
	w.eventually("the agents know the roots", func() bool { return one.Roots() != nil && two.Roots() != nil })
	c := w.crave(one, two)
	for range 2 {
		data := w.certManager(t)
		root, err := parseOne(string(data[rootsKey]))
		if err != nil {
			t.Fatal(err)
		}
		w.hand(t, data)
		w.eventually("certificates are signed under the new root", func() bool { return c.under(root) > 20 })
	}
	seen, failures := c.end()
	t.Logf("certificates under each root: %v", seen)
	if len(failures) > 0 || len(seen) != 3 {
		t.Errorf("certificates under %d roots, failures %v; want three roots and none", len(seen), failures)
	}
	b, _ := w.replicas[1].authority.trust()
	if len(b.roots) != 3 {
		t.Errorf("%d roots are trusted; those of before must stay while certificates live", len(b.roots))
	}
	w.clock.advance(certs.LeafLife + 2*retireSlack)
	w.replicas[0].poke()
	w.eventually("the old roots are gone", func() bool {
		b, _ := w.replicas[1].authority.trust()
		return len(b.roots) == 1 && bytes.Equal(one.Roots(), b.pem())
	})
	if err := one.Await(t.Context(), identityOf("shop", "web")); err != nil {
		t.Errorf("after its certificates had expired, an agent got no new one: %v", err)
	}
}

func testBroken(t *testing.T, w *world) {
	r := w.replicas[1]
	good := r.authority.state().active
	data := w.certManager(t)
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("topsecret")})
	for _, tt := range []struct {
		says string
		data map[string][]byte
	}{
		{"is encrypted", map[string][]byte{corev1.TLSCertKey: data[corev1.TLSCertKey], corev1.TLSPrivateKeyKey: encrypted, rootsKey: data[rootsKey]}},
		{"no roots are given", map[string][]byte{corev1.TLSCertKey: data[corev1.TLSCertKey], corev1.TLSPrivateKeyKey: data[corev1.TLSPrivateKeyKey]}},
	} {
		w.hand(t, tt.data)
		w.eventually("the replica says: "+tt.says, func() bool {
			return slices.ContainsFunc(r.Health(), func(f Finding) bool { return f.Reason == "IssuerNotUsable" && strings.Contains(f.Message, tt.says) })
		})
		if st := r.authority.state(); st.active != good {
			t.Error("the old issuer is not in force any more")
		}
		w.eventually("there is an event", func() bool {
			list, err := w.client.CoreV1().Events("conduit").List(t.Context(), metav1.ListOptions{})
			return err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
				return e.Reason == "IssuerNotUsable" && strings.Contains(e.Message, tt.says) && e.InvolvedObject.Name == IssuerSecret
			})
		})
	}
	// What was handed in is not replaced by something else when it goes.
	if err := w.client.CoreV1().Secrets("conduit").Delete(t.Context(), IssuerSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the leader says that the issuer is gone", func() bool { return strings.Contains(w.logs.String(), errIssuerGone.Error()) })
	if _, err := w.client.CoreV1().Secrets("conduit").Get(t.Context(), IssuerSecret, metav1.GetOptions{}); err == nil {
		t.Error("an issuer was made in the place of one that was handed in")
	}
	if err := r.Ready(); err != nil {
		t.Errorf("the old issuer should still be in force: %v", err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: IssuerSecret}, Type: corev1.SecretTypeTLS, Data: data}
	if _, err := w.client.CoreV1().Secrets("conduit").Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the restored issuer signs", func() bool { s, err := r.authority.signer(); return err == nil && s != good })
}

// testByHand: roots that people add are kept and told, and a bundle that they break is restored.
func testByHand(t *testing.T, w *world) {
	maps, r := w.client.CoreV1().ConfigMaps("conduit"), w.replicas[1]
	edit := func(f func(*corev1.ConfigMap)) {
		w.eventually("the ConfigMap is edited", func() bool {
			cm, err := maps.Get(t.Context(), RootsConfigMap, metav1.GetOptions{})
			if err == nil {
				f(cm)
				_, err = maps.Update(t.Context(), cm, metav1.UpdateOptions{})
			}
			return err == nil
		})
	}
	before, _ := r.authority.trust()
	foreign := w.certManager(t)[rootsKey]
	edit(func(cm *corev1.ConfigMap) { cm.Data[rootsKey] += string(foreign) })
	w.eventually("the added root is trusted", func() bool { b, _ := r.authority.trust(); return len(b.roots) == len(before.roots)+1 })
	with, _ := r.authority.trust()
	edit(func(cm *corev1.ConfigMap) { cm.Data[rootsKey] = "oops" })
	w.eventually("the bundle is restored", func() bool {
		cm, err := maps.Get(t.Context(), RootsConfigMap, metav1.GetOptions{})
		return err == nil && cm.Data[rootsKey] == string(with.pem())
	})
	if b, _ := r.authority.trust(); b.revision() != with.revision() {
		t.Error("a broken bundle was trusted")
	}
	if err := maps.Delete(t.Context(), RootsConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the deleted bundle is there again", func() bool {
		cm, err := maps.Get(t.Context(), RootsConfigMap, metav1.GetOptions{})
		return err == nil && cm.Data[rootsKey] == string(with.pem())
	})
}

// testDistrust: a root that is taken out of the bundle takes its certificates with it, and everybody has new ones at once.
func testDistrust(t *testing.T, w *world) {
	maps, r := w.client.CoreV1().ConfigMaps("conduit"), w.replicas[1]
	one := w.agent(w.replicas[0], "n1")
	web := identityOf("shop", "web")
	if err := one.Await(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	old := r.authority.state().active
	w.hand(t, w.certManager(t))
	w.eventually("the new issuer signs", func() bool { return r.authority.state().active != old && w.replicas[0].authority.state().active != old })
	if _, err := w.verify(one.Leaves()[0].Chain, encodeRoot(old.Root())); err != nil {
		t.Errorf("a certificate was replaced although its root is still trusted: %v", err)
	}
	w.eventually("the old root is deleted", func() bool {
		cm, err := maps.Get(t.Context(), RootsConfigMap, metav1.GetOptions{})
		if err != nil {
			return false
		}
		cm.Data[rootsKey] = strings.Replace(cm.Data[rootsKey], string(encodeRoot(old.Root())), "", 1)
		_, err = maps.Update(t.Context(), cm, metav1.UpdateOptions{})
		return err == nil
	})
	w.eventually("everybody has certificates under the new root", func() bool {
		_, err := w.verify(one.Leaves()[0].Chain, r.roots0())
		_, err2 := w.verify(r.own.Leaves()[0].Chain, r.roots0())
		_, still := r.authority.state().bundle.maySign(old.Root())
		return err == nil && err2 == nil && !still && bytes.Equal(one.Roots(), r.roots0())
	})
}

func encodeRoot(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// testExpiry lets the handed-in issuer expire, with alarms, and brings everything back by a new one.
func testExpiry(t *testing.T, w *world) {
	r := w.replicas[1]
	one := w.agent(w.replicas[0], "n1")
	web := identityOf("shop", "web")
	if err := one.Await(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	end := r.authority.state().active.NotAfter()
	for _, tt := range []struct {
		left   time.Duration
		reason string
	}{{20 * 24 * time.Hour, "IssuerExpiresInAMonth"}, {6 * 24 * time.Hour, "IssuerExpiresInAWeek"}, {time.Hour, "IssuerExpiresInADay"}, {-time.Hour, "IssuerExpired"}} {
		w.clock.advance(end.Sub(w.clock.now()) - tt.left)
		w.replicas[0].poke()
		w.eventually("there is an event "+tt.reason, func() bool {
			list, err := w.client.CoreV1().Events("conduit").List(t.Context(), metav1.ListOptions{})
			return err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return e.Reason == tt.reason })
		})
	}
	if one.Holds(web) {
		t.Fatal("the agent holds a certificate that outlives its issuer")
	}
	w.hand(t, w.certManager(t))
	w.write(one.dir, "roots", "")
	w.eventually("the new root is published", func() bool { b, _ := r.authority.trust(); return len(b.roots) > 0 && r.Ready() == nil })
	w.write(one.dir, "roots", string(r.roots0())) // the kubelet does
	if err := one.Await(t.Context(), web); err != nil {
		t.Errorf("an agent whose certificates and roots have all expired did not come back: %v", err)
	}
}

func testLogs(t *testing.T, w *world) {
	all := w.logs.String()
	if len(all) == 0 {
		t.Fatal("nothing was logged")
	}
	tokens := []string{w.token("conduit", AgentAccount, "conduit-agent-n1", Audience)}
	for _, secret := range append([]string{"PRIVATE KEY", "topsecret", "dG9wc2VjcmV0"}, strings.SplitN(tokens[0], ".", 2)[0]) {
		if strings.Contains(all, secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}
