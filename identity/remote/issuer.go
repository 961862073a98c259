// Package remote is the issuer of an agent on Kubernetes: it has the controller certify the node's identities, and follows
// the trust bundle. The keys are made here, and never leave the node.
package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	identityv1 "conduit.io/conduit/api/identityv1"
	"conduit.io/conduit/api/identityv1/identityv1connect"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"

	"connectrpc.com/connect"
)

const (
	// maxRequests is how many certificates are asked for at once: what the controller takes.
	maxRequests = 256
	callTimeout = 15 * time.Second
	maxMessage  = 8 << 20

	// A stream that has ended is opened again after a pause, which grows from the first to the second.
	reopenFirst = time.Second
	reopenMost  = 20 * time.Second
)

// Config says where the controller is, and by what both sides prove themselves.
type Config struct {
	URL        string        // https://HOST:PORT
	Address    string        // host:port where the controller is, too, for when its name leads nowhere; empty: not known
	TokenFile  string        // a projected ServiceAccount token; read again for each request, for the kubelet renews it
	RootsFile  string        // PEM: the bundle to begin with, kept up to date by the kubelet; read again for each connection
	Controller mesh.Identity // who must answer; its trust domain is that of the mesh
	Log        *slog.Logger
	Now        func() time.Time // the clock; nil means time.Now
}

// Issuer asks the controller; it is an identity.Issuer. It is safe for concurrent use.
type Issuer struct {
	cfg    Config
	client identityv1connect.IdentityServiceClient
	http   *http.Client

	mu       sync.Mutex
	roots    []*x509.Certificate // the newest that were heard of; nil before
	revision string              // of roots, if the controller sent exactly them
	heard    bool                // the controller has sent roots
	file     string              // what RootsFile had when it was last taken for roots
}

// New makes an Issuer. It connects when it is asked for something.
func New(cfg Config) *Issuer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	i := &Issuer{cfg: cfg}
	i.http = &http.Client{Transport: newTransport(&i.cfg, i.trusted)}
	i.client = identityv1connect.NewIdentityServiceClient(i.http, cfg.URL, connect.WithGRPC(), connect.WithReadMaxBytes(maxMessage))
	return i
}

// HTTPClient speaks with the controller as the agent, for its other services. It shares one connection with the Issuer.
func (i *Issuer) HTTPClient() *http.Client { return i.http }

// trusted are the roots to know the controller by: those of the file and those that the controller has sent. The file is
// what an agent comes back with that was away for longer than its certificates and roots lived.
func (i *Issuer) trusted() *x509.CertPool {
	pool := x509.NewCertPool()
	if data, err := readBounded(i.cfg.RootsFile); err == nil {
		pool.AppendCertsFromPEM(data)
	} else {
		i.cfg.Log.Warn("roots not read", "error", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, c := range i.roots {
		pool.AddCert(c)
	}
	return pool
}

// Certify is identity.Issuer's. Every attempt has a new key.
func (i *Issuer) Certify(ctx context.Context, ids []mesh.Identity) identity.Batch {
	b := identity.Batch{Issued: make([]identity.Issued, len(ids))}
	for from := 0; from < len(ids); from += maxRequests {
		to := min(from+maxRequests, len(ids))
		i.certify(ctx, ids[from:to], b.Issued[from:to])
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, got := range b.Issued {
		if got.Leaf != nil {
			b.Roots = encode(i.roots)
			break
		}
	}
	return b
}

func (i *Issuer) certify(ctx context.Context, ids []mesh.Identity, out []identity.Issued) {
	keys := make([]*ecdsa.PrivateKey, len(ids))
	req := &identityv1.CertifyRequest{}
	for n, id := range ids {
		key, csr, err := identity.NewRequest(id)
		if err != nil {
			fail(out, err)
			return
		}
		keys[n] = key
		req.Requests = append(req.Requests, &identityv1.CertificateRequest{Identity: id.String(), Csr: csr})
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := i.client.Certify(ctx, req)
	if err != nil {
		fail(out, fmt.Errorf("ask the controller for certificates: %w", err))
		return
	}
	roots, err := decode(res.GetRoots().GetCertificates())
	if err == nil && (len(roots) == 0 || len(res.GetResults()) != len(ids)) {
		err = fmt.Errorf("%d results for %d requests, with %d roots", len(res.GetResults()), len(ids), len(roots))
	}
	if err != nil {
		fail(out, fmt.Errorf("the controller's answer: %w", err))
		return
	}
	for n, r := range res.GetResults() {
		if no := r.GetRefusal(); no != nil {
			out[n].Err = fmt.Errorf("the controller certifies no %s: %s (%s)", ids[n], no.GetMessage(), no.GetReason())
			continue
		}
		out[n].Leaf, out[n].Err = i.leaf(ids[n], keys[n], r.GetCertificate().GetChain(), roots)
	}
}

func fail(out []identity.Issued, err error) {
	for n := range out {
		out[n].Err = err
	}
}

// leaf checks what came, and makes sure that the root that it is under is among those that are trusted: the news of a new
// root may still be on their way, and come by another replica.
func (i *Issuer) leaf(id mesh.Identity, key *ecdsa.PrivateKey, chain [][]byte, roots []*x509.Certificate) (*identity.Leaf, error) {
	certs, err := decode(chain)
	if err == nil && (len(certs) == 0 || !key.PublicKey.Equal(certs[0].PublicKey)) {
		err = errors.New("it is not for the key that was sent")
	}
	if err == nil && (len(certs[0].URIs) != 1 || certs[0].URIs[0].String() != id.String()) {
		err = fmt.Errorf("it is for %v", certs[0].URIs)
	}
	if err == nil {
		err = i.adopt(certs, roots)
	}
	if err != nil {
		return nil, fmt.Errorf("the controller's certificate for %s: %w", id, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", id, err)
	}
	return &identity.Leaf{Identity: id, Chain: encode(certs), NotAfter: certs[0].NotAfter,
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}, nil
}

func (i *Issuer) adopt(certs, roots []*x509.Certificate) error {
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	paths, err := certs[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: i.cfg.Now()})
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.roots == nil {
		i.roots = roots
	}
	for _, path := range paths {
		if slices.ContainsFunc(i.roots, path[len(path)-1].Equal) {
			return nil
		}
	}
	i.roots, i.revision = union(i.roots, paths[0][len(paths[0])-1:]), ""
	return nil
}

// Watch is identity.Issuer's: the controller's stream, opened again whenever it ends, and the file in between.
func (i *Issuer) Watch(ctx context.Context, roots func([]byte), failed func(error)) {
	pause, told := reopenFirst, ""
	for ctx.Err() == nil {
		if pem := i.fromFile(); pem != nil {
			roots(pem)
		}
		heard, err := i.follow(ctx, roots)
		if ctx.Err() != nil {
			return
		}
		if heard {
			pause, told = reopenFirst, ""
		}
		if err != nil && err.Error() != told {
			told = err.Error()
			failed(fmt.Errorf("follow the trust bundle: %w", err))
		}
		timer := time.NewTimer(pause/2 + rand.N(pause)) // agents come back one by one
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, reopenMost)
	}
}

// fromFile is the bundle of the file, if the file has changed: by the kubelet, which may know more than a controller that
// cannot be reached.
func (i *Issuer) fromFile() []byte {
	data, err := readBounded(i.cfg.RootsFile)
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil || string(data) == i.file {
		return nil
	}
	var der [][]byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		der = append(der, block.Bytes)
	}
	certs, err := decode(der)
	if err != nil || len(certs) == 0 {
		return nil
	}
	if i.heard { // by a controller that may have known more: nothing is taken away before it can be asked again
		certs = union(i.roots, certs)
	}
	i.file, i.roots, i.revision = string(data), certs, ""
	return encode(certs)
}

func union(a, b []*x509.Certificate) []*x509.Certificate {
	out := slices.Clone(a)
	for _, c := range b {
		if !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return out
}

// follow reads one stream to its end. heard says that it was of use.
func (i *Issuer) follow(ctx context.Context, roots func([]byte)) (heard bool, err error) {
	i.mu.Lock()
	has := i.revision
	i.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := i.cfg.Now()
	defer func() { heard = heard || i.cfg.Now().Sub(began) > reopenMost }() // it stood, and there was nothing to say
	stream, err := i.client.WatchRoots(ctx, &identityv1.WatchRootsRequest{Revision: has})
	if err != nil {
		return false, err
	}
	defer stream.Close()
	for stream.Receive() {
		r := stream.Msg().GetRoots()
		certs, err := decode(r.GetCertificates())
		if err == nil && len(certs) == 0 {
			err = errors.New("the controller has sent an empty trust bundle")
		}
		if err != nil {
			return heard, err // the last good one stays
		}
		i.mu.Lock()
		i.roots, i.revision, i.heard = certs, r.GetRevision(), true
		i.mu.Unlock()
		roots(encode(certs))
		heard = true
	}
	return heard, stream.Err() // none: a controller that drains; another one is at the same address
}

func decode(ders [][]byte) ([]*x509.Certificate, error) {
	out := make([]*x509.Certificate, 0, len(ders))
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func encode(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
