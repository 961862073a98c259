package identity

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	identityv1 "conduit.io/conduit/api/identityv1"
	"conduit.io/conduit/control/access"
	certs "conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// maxRequests bounds the certificates of one call.
	maxRequests = 256
	// MaxMessage bounds a message of the service, in bytes; the server must be told.
	MaxMessage = maxRequests*(certs.MaxRequest+2048+64) + 1024
)

// Certify is the IdentityService's: certificates for identities of pods that run on the caller's node now. The caller has
// passed an access.Gate.
func (s *Service) Certify(ctx context.Context, req *identityv1.CertifyRequest) (*identityv1.CertifyResponse, error) {
	caller := access.From(ctx)
	deny := func(code connect.Code, reason, format string, args ...any) error {
		err := fmt.Errorf(format, args...)
		s.counts.refuse(reason, caller.User+" "+caller.Node, err.Error())
		return connect.NewError(code, err)
	}
	switch {
	case !caller.Agent || caller.Node == "":
		return nil, deny(connect.CodePermissionDenied, "not-agent", "only agents obtain certificates, by a token that is bound to their pod")
	case len(req.GetRequests()) > maxRequests:
		return nil, deny(connect.CodeInvalidArgument, "oversized", "%d requests; at most %d are taken at once", len(req.GetRequests()), maxRequests)
	}
	signer, err := s.authority.signer()
	if err != nil {
		return nil, deny(connect.CodeUnavailable, "no-issuer", "%v", err)
	}
	b, _ := s.authority.trust()
	res := &identityv1.CertifyResponse{Roots: s.roots(b)}
	for _, r := range req.GetRequests() {
		res.Results = append(res.Results, s.certify(ctx, caller, signer, r))
	}
	return res, nil
}

// refusal is why there is no certificate: for the caller, and for the count.
type refusal struct {
	reason identityv1.Refusal_Reason
	label  string
	err    error
}

// certify answers one request.
func (s *Service) certify(ctx context.Context, caller access.Caller, signer *certs.Signer, r *identityv1.CertificateRequest) *identityv1.CertificateResult {
	res := &identityv1.CertificateResult{Identity: r.GetIdentity()}
	cert, no := s.sign(ctx, caller, signer, r)
	if no != nil {
		s.counts.refuse(no.label, caller.User+" "+caller.Node, fmt.Sprintf("%.200q: %v", r.GetIdentity(), no.err))
		res.Result = &identityv1.CertificateResult_Refusal{Refusal: &identityv1.Refusal{Reason: no.reason, Message: no.err.Error()}}
		return res
	}
	s.counts.issue()
	res.Result = &identityv1.CertificateResult_Certificate{Certificate: cert}
	return res
}

func (s *Service) sign(ctx context.Context, caller access.Caller, signer *certs.Signer, r *identityv1.CertificateRequest) (*identityv1.Certificate, *refusal) {
	id, err := mesh.ParseIdentity(r.GetIdentity())
	if err != nil {
		return nil, &refusal{identityv1.Refusal_REASON_BAD_REQUEST, "bad-identity", errors.New("it is no SPIFFE ID of a workload")}
	}
	if id.TrustDomain != s.cfg.TrustDomain {
		return nil, &refusal{identityv1.Refusal_REASON_TRUST_DOMAIN, "trust-domain", fmt.Errorf("the trust domain here is %s", s.cfg.TrustDomain)}
	}
	if err := s.lookups.maySign(caller.Node); err != nil {
		return nil, &refusal{identityv1.Refusal_REASON_THROTTLED, "throttled", err}
	}
	key, err := certs.ParseRequest(r.GetCsr(), id)
	var bad *certs.RequestError
	if errors.As(err, &bad) {
		return nil, &refusal{identityv1.Refusal_REASON_BAD_REQUEST, "csr-" + string(bad.Fault), err}
	}
	switch err := s.lookups.runs(ctx, caller.Node, id); {
	case errors.Is(err, errNotOnNode):
		return nil, &refusal{identityv1.Refusal_REASON_NOT_ON_NODE, "not-on-node", err}
	case errors.Is(err, errThrottled):
		return nil, &refusal{identityv1.Refusal_REASON_THROTTLED, "throttled", err}
	case err != nil:
		return nil, &refusal{identityv1.Refusal_REASON_ISSUER, "lookup-failed", err}
	}
	hash, ok := s.replays.claim(key)
	if !ok {
		return nil, &refusal{identityv1.Refusal_REASON_REPLAYED, "replayed", errors.New("the key was certified before; make a new one")}
	}
	now := s.cfg.Now()
	chain, end, err := signer.Sign(id, key)
	if err != nil {
		s.replays.release(hash)
		return nil, &refusal{identityv1.Refusal_REASON_ISSUER, "issuer-failed", err}
	}
	cert := &identityv1.Certificate{NotBefore: timestamppb.New(now), NotAfter: timestamppb.New(end),
		RenewAt: timestamppb.New(now.Add(end.Sub(now) * 2 / 3))}
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		cert.Chain = append(cert.Chain, block.Bytes)
	}
	return cert, nil
}

// roots is b as the API has it; nil for nil.
func (s *Service) roots(b *bundle) *identityv1.Roots {
	if b == nil {
		return nil
	}
	r := &identityv1.Roots{TrustDomain: s.cfg.TrustDomain, Revision: b.revision()}
	for _, c := range b.certificates() {
		r.Certificates = append(r.Certificates, c.Raw)
	}
	return r
}

// WatchRoots is the IdentityService's: the bundle now, and whenever it has changed, until the
// replica drains.
func (s *Service) WatchRoots(ctx context.Context, req *identityv1.WatchRootsRequest, out *connect.ServerStream[identityv1.WatchRootsResponse]) error {
	s.counts.watchers.Add(1)
	defer s.counts.watchers.Add(-1)
	has := req.GetRevision()
	for {
		b, changed := s.authority.trust()
		if b != nil && b.revision() != has {
			if err := out.Send(&identityv1.WatchRootsResponse{Roots: s.roots(b)}); err != nil {
				return err
			}
			has = b.revision()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-s.cfg.Draining: // not all at once: each will come to another replica
			timer := time.NewTimer(rand.N(s.cfg.DrainTime + 1))
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
			return nil
		}
	}
}

// GetRoots is the IdentityService's: the bundle, which is no secret.
func (s *Service) GetRoots(context.Context, *identityv1.GetRootsRequest) (*identityv1.GetRootsResponse, error) {
	b, _ := s.authority.trust()
	if b == nil {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("the trust bundle is not known yet"))
	}
	return &identityv1.GetRootsResponse{Roots: s.roots(b)}, nil
}

// expires is when c, or what is above it, ends; zero for none.
func expires(c *certs.Signer) time.Time {
	if c == nil {
		return time.Time{}
	}
	return c.NotAfter()
}
