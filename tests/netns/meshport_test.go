package netns_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"

	"golang.org/x/net/http2"
)

// TestMeshPort knocks at the mesh port of a STRICT pod with everything that is no member of the mesh, and with members that
// ask for too much, while thousands of handshakes are left half-open and good clients go on working.
func TestMeshPort(t *testing.T) {
	r := newRegion(t)
	made := r.pods(t, resident{1, r.open, "fresh", lab.PodOptions{}, nil}, resident{2, r.plain, "flood", lab.PodOptions{}, nil})
	fresh, flood := made[0], made[1]
	b := newBustle(t, []pair{{r.openA, r.shutB}, {r.shutA, r.shutB}, {r.openB, r.shutB}})
	k := &knocker{region: r, target: netip.AddrPortFrom(r.shutB.IP(lab.IPv4), meshPort), ca: r.authority(t)}
	timeouts := metric(t, r.two, handshakesFailed, `reason="connect-timeout"`)
	k.leaveHalfOpen(t, flood)
	t.Run("new member while handshakes are half-open", func(t *testing.T) {
		start := time.Now()
		if err := (pair{fresh, r.shutB}).ask(t.Context(), lab.IPv4, "fresh"); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("the first connection of a good client took %v", took)
		}
	})
	b.progress(3)
	t.Run("strangers", k.strangers)
	t.Run("HBONE", k.hbone)
	b.progress(3)
	t.Run("half-open handshakes are counted", func(t *testing.T) {
		testnet.Eventually(t, 20*time.Second, func(ctx context.Context) error {
			got, err := testnet.Metric(ctx, r.two, handshakesFailed, `reason="connect-timeout"`)
			if err != nil || got-timeouts < 2*halfOpen {
				return fmt.Errorf("%v handshakes timed out, want %d (%v)", got-timeouts, 2*halfOpen, err)
			}
			return nil
		})
	})
	b.progress(3)
	b.stop()
	if city.bin == "" { // it is done by manifests
		t.Run("impersonation", func(t *testing.T) { impersonated(t, r) })
	}
}

const (
	handshakesFailed = "conduit_proxy_handshakes_failed_total"
	halfOpen         = 1000 // of each kind
)

// knocker is a client, outside the mesh, of the mesh port of shutB.
type knocker struct {
	*region
	target netip.AddrPort
	ca     authority
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func parseAuthority(t *testing.T, cert, key []byte) (a authority) {
	t.Helper()
	parse := func(text []byte) []byte {
		block, _ := pem.Decode(text)
		if block == nil {
			t.Fatalf("no PEM: %.40q", text)
		}
		return block.Bytes
	}
	var err error
	if a.cert, err = x509.ParseCertificate(parse(cert)); err != nil {
		t.Fatal(err)
	}
	private, err := x509.ParsePKCS8PrivateKey(parse(key))
	if err != nil {
		t.Fatal(err)
	}
	a.key = private.(*ecdsa.PrivateKey)
	return a
}

// newAuthority makes another one, which nobody trusts.
func newAuthority(t *testing.T, like authority) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := *like.cert
	tmpl.PublicKey, tmpl.SubjectKeyId, tmpl.AuthorityKeyId, tmpl.Raw = nil, nil, nil, nil
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

// issue makes a workload's certificate, changed by change.
func (a authority) issue(t *testing.T, uris []string, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "knocker"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, parsed)
	}
	if change != nil {
		change(tmpl)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key // self-signed
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// member is the identity of openA.
func (r *region) member() string { return "spiffe://cluster.local/ns/" + r.open + "/sa/open-a" }

// dial connects to the mesh port and shakes hands.
func (k *knocker) dial(ctx context.Context, cert *tls.Certificate, alpn string, version uint16) (*tls.Conn, error) {
	c, err := testnet.Dial(ctx, k.outsider, k.target)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}, MaxVersion: version}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	tc := tls.Client(c, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return tc, nil
}

// strangers: each is refused with an alert or a reset, and counted under its reason.
func (k *knocker) strangers(t *testing.T) {
	other := newAuthority(t, k.ca)
	mine := []string{k.member()}
	for name, tt := range map[string]struct {
		cert   *tls.Certificate
		alpn   string // empty: conduit/1
		max    uint16 // TLS version
		raw    string // sent in place of TLS
		reason string
	}{
		"no certificate":         {reason: "tls-failed"},
		"self-signed":            {cert: authority{}.issue(t, mine, nil), reason: "tls-failed"},
		"another authority":      {cert: other.issue(t, mine, nil), reason: "tls-failed"},
		"wrong trust domain":     {cert: other.issue(t, []string{"spiffe://other.example/ns/open/sa/open-a"}, nil), reason: "tls-failed"},
		"trust domain not ours":  {cert: k.ca.issue(t, []string{"spiffe://other.example/ns/open/sa/open-a"}, nil), reason: "tls-failed"}, // name constraints of our own root
		"expired":                {cert: k.ca.issue(t, mine, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), reason: "tls-failed"},
		"not yet valid":          {cert: k.ca.issue(t, mine, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), reason: "tls-failed"},
		"for servers only":       {cert: k.ca.issue(t, mine, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), reason: "tls-failed"},
		"no SPIFFE ID":           {cert: k.ca.issue(t, nil, func(c *x509.Certificate) { c.DNSNames = []string{"shop"} }), reason: "peer-identity"},
		"two SPIFFE IDs":         {cert: k.ca.issue(t, []string{k.member(), k.member() + "2"}, nil), reason: "peer-identity"},
		"SPIFFE ID of no pod":    {cert: k.ca.issue(t, []string{"spiffe://cluster.local/node/one"}, nil), reason: "peer-identity"},
		"no protocol of ours":    {cert: k.ca.issue(t, mine, nil), alpn: "http/1.1", reason: "tls-failed"},
		"TLS 1.2":                {cert: k.ca.issue(t, mine, nil), max: tls.VersionTLS12, reason: "tls-failed"},
		"plaintext HTTP":         {raw: "GET / HTTP/1.1\r\nHost: x\r\n\r\n", reason: "tls-failed"},
		"plaintext HTTP/2":       {raw: http2.ClientPreface, reason: "tls-failed"},
		"garbage":                {raw: strings.Repeat("\x17\xff\x00garbage", 1000), reason: "tls-failed"},
		"garbage in a handshake": {raw: "\x16\x03\x01\x00\x20" + strings.Repeat("\x01", 32), reason: "tls-failed"},
	} {
		t.Run(name, func(t *testing.T) {
			before := metric(t, k.two, handshakesFailed, `reason="`+tt.reason+`"`)
			var err error
			if tt.raw != "" {
				err = k.shout(t.Context(), tt.raw)
			} else {
				if tt.alpn == "" {
					tt.alpn = "conduit/1"
				}
				err = k.tryTLS(t.Context(), tt.cert, tt.alpn, tt.max)
			}
			var timeout net.Error
			if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("%v, want a refusal", err)
			}
			testnet.Eventually(t, 5*time.Second, func(ctx context.Context) error {
				got, err := testnet.Metric(ctx, k.two, handshakesFailed, `reason="`+tt.reason+`"`)
				if err != nil || got-before != 1 {
					return fmt.Errorf("%v handshakes counted as failed for %s, want 1 (%v)", got-before, tt.reason, err)
				}
				return nil
			})
		})
	}
}

// tryTLS shakes hands and reads. In TLS 1.3 the client has done its part before the server looks at its certificate.
func (k *knocker) tryTLS(ctx context.Context, cert *tls.Certificate, alpn string, version uint16) error {
	c, err := k.dial(ctx, cert, alpn, version)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

// shout says something that is no TLS, and reads until the end. An alert is all that may be said in return.
func (k *knocker) shout(ctx context.Context, raw string) error {
	c, err := testnet.Dial(ctx, k.outsider, k.target)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, raw); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if len(got) > 0 && got[0] != 0x15 {
		return nil // answered
	}
	if err == nil {
		err = io.EOF
	}
	return err
}

// leaveHalfOpen opens connections of which half never say a word, and half begin a handshake and stop.
func (k *knocker) leaveHalfOpen(t *testing.T, from testnet.Pod) {
	t.Helper()
	begin := []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") // a record of 512 bytes, of which 6 are there
	for i := range 2 * halfOpen {
		c, err := testnet.Dial(t.Context(), from, k.target)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if i%2 == 0 {
			if _, err := c.Write(begin); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// hbone: a member may reach every port of the pod that it has connected to, and nothing else.
func (k *knocker) hbone(t *testing.T) {
	tc, err := k.dial(t.Context(), k.ca.issue(t, []string{k.member()}, nil), "h2", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tc.Close()
	tc.SetDeadline(time.Now().Add(30 * time.Second))
	conn := http2Over(t, tc)
	at := func(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
	other := pair{k.outsider, k.shutB}.family() // IPv6, if there is any
	for name, tt := range map[string]struct {
		authority string
		status    int
		reason    string
	}{
		"its address":             {at(k.shutB.IP(lab.IPv4), regionWitness), 200, ""},
		"its other address":       {at(k.shutB.IP(other), regionWitness), 200, ""},
		"a neighbour":             {at(k.openB.IP(lab.IPv4), regionWitness), 403, "not-a-mesh-target"},
		"a pod elsewhere":         {at(k.openA.IP(other), regionWitness), 403, "not-a-mesh-target"},
		"its loopback":            {"127.0.0.1:9000", 403, "not-a-mesh-target"},
		"its loopback by IPv6":    {"[::1]:9000", 403, "not-a-mesh-target"},
		"its loopback, mapped":    {"[::ffff:127.0.0.1]:9000", 403, "not-a-mesh-target"},
		"any address":             {"0.0.0.0:9000", 403, "not-a-mesh-target"},
		"its node":                {at(k.nodeAddr(t, 2), 4191), 403, "not-a-mesh-target"},
		"the mesh port":           {at(k.shutB.IP(lab.IPv4), meshPort), 403, "not-a-mesh-target"},
		"a name":                  {"shop.example:9000", 400, "bad-request"},
		"a port that is not open": {at(k.shutB.IP(lab.IPv4), 4), 503, "connect-failed"},
	} {
		t.Run(name, func(t *testing.T) {
			status, reason, saw, err := tunnel(t.Context(), conn, tt.authority)
			if err != nil || status != tt.status || reason != tt.reason {
				t.Fatalf("%d, reason %q, %v; want %d, %q", status, reason, err, tt.status, tt.reason)
			}
			if status == 200 && (saw.name != k.shutB.Name() || saw.local.String() != tt.authority || !slices.Contains(k.outsider.Addrs(), saw.accepted.Addr())) {
				t.Errorf("the application saw %+v", saw)
			}
		})
	}
	t.Run("a request that is no CONNECT", func(t *testing.T) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+at(k.shutB.IP(lab.IPv4), regionHTTP)+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := conn.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != 400 || resp.Header.Get("conduit-reason") != "bad-request" {
			t.Errorf("%s, reason %q; want 400, bad-request", resp.Status, resp.Header.Get("conduit-reason"))
		}
	})
}

// http2Over is the client's side of HTTP/2 on c.
func http2Over(t *testing.T, c *tls.Conn) *http.ClientConn {
	t.Helper()
	transport := &http.Transport{
		Protocols:      new(http.Protocols),
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c, nil },
	}
	transport.Protocols.SetHTTP2(true)
	conn, err := transport.NewClientConn(t.Context(), "https", c.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// tunnel opens a tunnel, and if it gets one asks the witness behind it.
func tunnel(ctx context.Context, conn *http.ClientConn, authority string) (status int, reason string, saw sighting, err error) {
	out, in := io.Pipe()
	defer in.Close()
	req := (&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority,
		Header: http.Header{}, Body: out, ContentLength: -1}).WithContext(ctx)
	resp, err := conn.RoundTrip(req)
	if err != nil {
		return 0, "", saw, err
	}
	defer resp.Body.Close()
	status, reason = resp.StatusCode, resp.Header.Get("conduit-reason")
	if status != http.StatusOK {
		return status, reason, saw, nil
	}
	if _, err := io.WriteString(in, "by-hbone\n"); err != nil {
		return status, reason, saw, err
	}
	line := make([]byte, 512)
	n, err := resp.Body.Read(line)
	if err != nil {
		return status, reason, saw, err
	}
	saw, err = parseSighting(string(line[:n]))
	return status, reason, saw, err
}

// impersonated: node one's manifests know the server under another service account than the one it has on its own node, as if
// somebody else answered at its address. Nobody on node one talks to it, until the manifests agree again.
func impersonated(t *testing.T, r *region) {
	p := pair{r.openA, r.shutB}
	_, one, _ := r.lab()
	file := "pod-shut.b.yaml"
	path := filepath.Join(one.ManifestDir(), file)
	right, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wrong := strings.Replace(string(right), "serviceAccountName: shut-b", "serviceAccountName: somebody-else", 1)
	if wrong == string(right) {
		t.Fatalf("no service account in\n%s", right)
	}
	before := metric(t, r.one, handshakesFailed, `reason="peer-identity"`)
	if err := one.WriteManifest(file, []byte(wrong)); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 10*time.Second, func(ctx context.Context) error {
		return p.wantReason(ctx, 503, "peer-identity")
	})
	for range 3 {
		if err := p.wantReason(t.Context(), 503, "peer-identity"); err != nil {
			t.Error(err)
		}
		if err := p.ask(t.Context(), lab.IPv4, "to-the-impostor"); err == nil {
			t.Error("opaque: the impostor got a connection")
		}
	}
	if got := metric(t, r.one, handshakesFailed, `reason="peer-identity"`) - before; got < 4 {
		t.Errorf("%v handshakes counted as failed for peer-identity, want at least 4", got)
	}
	if err := (pair{r.openA, r.openB}).ask(t.Context(), lab.IPv4, "others"); err != nil {
		t.Errorf("another server: %v", err)
	}
	if err := one.WriteManifest(file, right); err != nil {
		t.Fatal(err)
	}
	p.await(t)
}

// wantReason makes a request that the mesh itself must answer.
func (p pair) wantReason(ctx context.Context, status int, reason string) error {
	dials := 0
	c := p.client(1, &dials)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.at(lab.IPv4, regionHTTP).String()+"/", nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("conduit-reason"); resp.StatusCode != status || got != reason {
		return fmt.Errorf("%s: %s, reason %q; want %d, %q", p, resp.Status, got, status, reason)
	}
	return nil
}
