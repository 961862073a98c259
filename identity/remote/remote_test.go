package remote

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	identityv1 "conduit.io/conduit/api/identityv1"
	"conduit.io/conduit/api/identityv1/identityv1connect"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"

	"connectrpc.com/connect"
)

const domain = "cluster.local"

var (
	controllerID = mesh.Identity{TrustDomain: domain, Namespace: "conduit", ServiceAccount: "conduit-controller"}
	web          = mesh.Identity{TrustDomain: domain, Namespace: "shop", ServiceAccount: "web"}
)

// controller signs whatever it is asked for, as its tests of its own make sure it does not; here it is about the agent.
type controller struct {
	mu     sync.Mutex
	signer *identity.Signer
	roots  [][]byte // DER
	change chan struct{}
	tokens []string // as they came
	spoil  func(*identityv1.CertifyResponse)
}

func newSigner(t *testing.T) *identity.Signer {
	t.Helper()
	cert, key, err := identity.NewRoot(domain, time.Now(), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.NewSigner(identity.SignerConfig{TrustDomain: domain, Chain: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// set changes what the controller signs with and what it tells of roots.
func (c *controller) set(signer *identity.Signer, roots ...*identity.Signer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.signer, c.roots = signer, nil
	for _, r := range roots {
		c.roots = append(c.roots, r.Root().Raw)
	}
	if c.change != nil {
		close(c.change)
	}
	c.change = make(chan struct{})
}

func (c *controller) bundle() *identityv1.Roots {
	revision := ""
	for _, r := range c.roots {
		revision += string(r[len(r)-8:])
	}
	return &identityv1.Roots{Certificates: c.roots, Revision: "r" + strings.ToValidUTF8(revision, "?")}
}

func (c *controller) Certify(ctx context.Context, req *identityv1.CertifyRequest) (*identityv1.CertifyResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, _ := connect.CallInfoForHandlerContext(ctx)
	c.tokens = append(c.tokens, info.RequestHeader().Get("Authorization"))
	res := &identityv1.CertifyResponse{Roots: &identityv1.Roots{Certificates: [][]byte{c.signer.Root().Raw}}}
	for _, r := range req.GetRequests() {
		id, err := mesh.ParseIdentity(r.GetIdentity())
		if err != nil {
			return nil, err
		}
		key, err := identity.ParseRequest(r.GetCsr(), id)
		if err != nil {
			return nil, err
		}
		chain, _, err := c.signer.Sign(id, key)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(chain)
		res.Results = append(res.Results, &identityv1.CertificateResult{Identity: r.GetIdentity(),
			Result: &identityv1.CertificateResult_Certificate{Certificate: &identityv1.Certificate{Chain: [][]byte{block.Bytes}}}})
	}
	if c.spoil != nil {
		c.spoil(res)
	}
	return res, nil
}

func (c *controller) WatchRoots(ctx context.Context, req *identityv1.WatchRootsRequest, out *connect.ServerStream[identityv1.WatchRootsResponse]) error {
	has := req.GetRevision()
	for {
		c.mu.Lock()
		b, change := c.bundle(), c.change
		c.mu.Unlock()
		if b.GetRevision() != has {
			if err := out.Send(&identityv1.WatchRootsResponse{Roots: b}); err != nil {
				return err
			}
			has = b.GetRevision()
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *controller) GetRoots(context.Context, *identityv1.GetRootsRequest) (*identityv1.GetRootsResponse, error) {
	return nil, errors.New("nobody asks")
}

// serve serves c with a certificate of id, and returns the URL.
func serve(t *testing.T, c *controller, addr string, id mesh.Identity) (url string, stop func()) {
	t.Helper()
	leaf, err := c.signer.Issue(id)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(leaf.Chain, leaf.Key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_, h := identityv1connect.NewIdentityServiceHandler(c)
	s := &http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	done := make(chan struct{})
	go func() {
		_ = s.ServeTLS(l, "", "") // it is closed
		close(done)
	}()
	stop = sync.OnceFunc(func() { s.Close(); <-done })
	t.Cleanup(stop)
	return "https://" + l.Addr().String(), stop
}

// agentOf is an Issuer for a controller, with a token, and the roots of a signer in its file.
func agentOf(t *testing.T, url string, file *identity.Signer) (i *Issuer, dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, dir, "token", "first\n")
	writeRoots(t, dir, file)
	i = New(Config{URL: url, TokenFile: filepath.Join(dir, "token"), RootsFile: filepath.Join(dir, "roots"), Controller: controllerID})
	t.Cleanup(i.HTTPClient().CloseIdleConnections)
	return i, dir
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func writeRoots(t *testing.T, dir string, s *identity.Signer) {
	t.Helper()
	write(t, dir, "roots", string(encode(s.Roots())))
}

func TestTokenIsReadForEachRequest(t *testing.T) {
	c := &controller{}
	s := newSigner(t)
	c.set(s, s)
	url, _ := serve(t, c, "127.0.0.1:0", controllerID)
	i, dir := agentOf(t, url, s)
	for _, token := range []string{"first", "second"} {
		write(t, dir, "token", token+"\n")
		got := i.Certify(t.Context(), []mesh.Identity{web})
		if err := got.Issued[0].Err; err != nil {
			t.Fatal(err)
		}
		if _, err := tls.X509KeyPair(got.Issued[0].Leaf.Chain, got.Issued[0].Leaf.Key); err != nil || len(got.Roots) == 0 {
			t.Errorf("%v, %d bytes of roots", err, len(got.Roots))
		}
		if last := c.tokens[len(c.tokens)-1]; last != "Bearer "+token {
			t.Errorf("the token sent is %q", last)
		}
	}
	os.Remove(filepath.Join(dir, "token"))
	if err := i.Certify(t.Context(), []mesh.Identity{web}).Issued[0].Err; err == nil || !strings.Contains(err.Error(), "read token") {
		t.Errorf("without a token: %v", err)
	}
}

// TestAddress: where the controller's name leads nowhere, as where the cluster's DNS waits for agents, its address does; and what answers there
// is asked who it is.
func TestAddress(t *testing.T) {
	c := &controller{}
	s := newSigner(t)
	c.set(s, s)
	url, _ := serve(t, c, "127.0.0.1:0", controllerID)
	pod, _ := serve(t, c, "127.0.0.1:0", web)
	const nowhere = "https://controller.invalid:8085"
	for _, tt := range []struct{ name, url, address, says string }{
		{"the name alone", nowhere, "", "controller.invalid"},
		{"and an address", nowhere, strings.TrimPrefix(url, "https://"), ""},
		{"a name that leads there", url, "127.0.0.1:1", ""},
		{"neither", nowhere, "127.0.0.1:1", "127.0.0.1:1"},
		{"somebody else at the address", nowhere, strings.TrimPrefix(pod, "https://"), "and not " + controllerID.String()},
	} {
		_, dir := agentOf(t, url, s)
		i := New(Config{URL: tt.url, Address: tt.address, TokenFile: filepath.Join(dir, "token"), RootsFile: filepath.Join(dir, "roots"), Controller: controllerID})
		err := i.Certify(t.Context(), []mesh.Identity{web}).Issued[0].Err
		i.HTTPClient().CloseIdleConnections()
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.says)
		}
	}
}

// TestImpostors: a server that is not the controller gets no token, whatever it is.
func TestImpostors(t *testing.T) {
	ours, theirs := newSigner(t), newSigner(t)
	for _, tt := range []struct {
		name   string
		signer *identity.Signer
		id     mesh.Identity
		says   string
	}{
		{"a pod of the mesh", ours, web, "and not " + controllerID.String()},
		{"another authority", theirs, controllerID, "is not trusted"},
	} {
		c := &controller{}
		c.set(tt.signer, tt.signer)
		url, _ := serve(t, c, "127.0.0.1:0", tt.id)
		i, _ := agentOf(t, url, ours)
		err := i.Certify(t.Context(), []mesh.Identity{web}).Issued[0].Err
		if err == nil || !strings.Contains(err.Error(), tt.says) || len(c.tokens) > 0 || strings.Contains(err.Error(), "first") {
			t.Errorf("%s: %v, tokens sent %d", tt.name, err, len(c.tokens))
		}
	}
}

func TestAnswersThatAreWrong(t *testing.T) {
	c := &controller{}
	s, other := newSigner(t), newSigner(t)
	c.set(s, s)
	url, _ := serve(t, c, "127.0.0.1:0", controllerID)
	i, _ := agentOf(t, url, s)
	foreign, err := s.Issue(web)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(foreign.Chain)
	for name, spoil := range map[string]func(*identityv1.CertifyResponse){
		"no results":    func(r *identityv1.CertifyResponse) { r.Results = nil },
		"no roots":      func(r *identityv1.CertifyResponse) { r.Roots = nil },
		"other roots":   func(r *identityv1.CertifyResponse) { r.Roots.Certificates = [][]byte{other.Root().Raw} },
		"broken roots":  func(r *identityv1.CertifyResponse) { r.Roots.Certificates = [][]byte{{1}} },
		"an empty one":  func(r *identityv1.CertifyResponse) { r.Results[0] = &identityv1.CertificateResult{} },
		"another's key": func(r *identityv1.CertifyResponse) { r.Results[0].GetCertificate().Chain = [][]byte{block.Bytes} },
		"rubbish":       func(r *identityv1.CertifyResponse) { r.Results[0].GetCertificate().Chain = [][]byte{{1, 2, 3}} },
		"a refusal": func(r *identityv1.CertifyResponse) {
			r.Results[0].Result = &identityv1.CertificateResult_Refusal{Refusal: &identityv1.Refusal{Message: "no"}}
		},
	} {
		c.mu.Lock()
		c.spoil = spoil
		c.mu.Unlock()
		got := i.Certify(t.Context(), []mesh.Identity{web})
		if got.Issued[0].Err == nil || got.Issued[0].Leaf != nil || got.Roots != nil {
			t.Errorf("%s: taken: %+v", name, got)
		}
	}
}

// TestWatch follows roots through a change, the controller's absence, and its return under a root that only the file knows.
func TestWatch(t *testing.T) {
	c := &controller{}
	one, two, three := newSigner(t), newSigner(t), newSigner(t)
	c.set(one, one)
	url, stop := serve(t, c, "127.0.0.1:0", controllerID)
	i, dir := agentOf(t, url, one)
	roots := make(chan string, 10)
	failed := make(chan error, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { i.Watch(ctx, func(pem []byte) { roots <- string(pem) }, func(err error) { failed <- err }) })
	defer wg.Wait()
	defer cancel()
	expect := func(what string, want ...*identity.Signer) {
		t.Helper()
		timeout := time.After(time.Minute)
		for {
			select {
			case got := <-roots:
				n := strings.Count(got, "BEGIN")
				for _, s := range want {
					if strings.Contains(got, string(encode(s.Roots()))) {
						n--
					}
				}
				if n == 0 && strings.Count(got, "BEGIN") == len(want) {
					return
				}
			case <-timeout:
				t.Fatalf("%s: these roots never came", what)
			}
		}
	}
	expect("at the start", one)
	c.set(one, one, two)
	expect("a second root", one, two)
	// A leaf under a root of which the stream has not told yet brings it along.
	c.mu.Lock()
	c.signer = three
	c.mu.Unlock()
	b := i.Certify(t.Context(), []mesh.Identity{web})
	if b.Issued[0].Err != nil || strings.Count(string(b.Roots), "BEGIN") != 3 {
		t.Errorf("a leaf under a new root: %v, %d roots", b.Issued[0].Err, strings.Count(string(b.Roots), "BEGIN"))
	}
	stop()
	if err := <-failed; err == nil || strings.Contains(err.Error(), "first") {
		t.Errorf("the controller is gone: %v", err)
	}
	last := newSigner(t)
	c.set(last, last)
	serve(t, c, strings.TrimPrefix(url, "https://"), controllerID)
	if err := <-failed; !strings.Contains(err.Error(), "not trusted") && !strings.Contains(err.Error(), "refused") {
		t.Errorf("a controller under a root that nobody told of: %v", err)
	}
	writeRoots(t, dir, last) // the kubelet does
	expect("what the file says is added", one, two, three, last)
	expect("what the controller says holds", last)
}
