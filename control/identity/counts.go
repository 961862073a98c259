package identity

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"conduit.io/conduit/control/access"
	certs "conduit.io/conduit/identity"
)

// reasons are all for which callers and requests are refused.
var reasons = []string{
	"malformed-token", "refused-token", "throttled-token", "unreviewed-token",
	"not-agent", "oversized", "no-issuer",
	"bad-identity", "trust-domain", "not-on-node", "replayed", "throttled", "lookup-failed", "issuer-failed",
	"csr-" + string(certs.FaultSize), "csr-" + string(certs.FaultMalformed), "csr-" + string(certs.FaultSignature),
	"csr-" + string(certs.FaultKey), "csr-" + string(certs.FaultExtension), "csr-" + string(certs.FaultName),
}

// counts are the service's counters. It is safe for concurrent use.
type counts struct {
	log      *slog.Logger
	now      func() time.Time
	issued   atomic.Uint64
	reviews  atomic.Uint64
	watchers atomic.Int64

	mu      sync.Mutex
	refused map[string]uint64 // by reason: a fixed set
	told    access.Told       // by reason and caller
}

func (c *counts) issue()  { c.issued.Add(1) }
func (c *counts) review() { c.reviews.Add(1) }

// count counts a refusal that the caller's gate tells.
func (c *counts) count(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused == nil {
		c.refused = map[string]uint64{}
	}
	c.refused[reason]++
}

// refuse counts a refusal, and logs the first of its kind and caller.
func (c *counts) refuse(reason, caller, text string) {
	c.count(reason)
	if c.told.First(reason+" "+caller, c.now()) {
		c.log.Warn("request refused; the same is not logged again for a while", "reason", reason, "caller", caller, "detail", text)
	}
}

// WriteMetrics writes the service's metrics in the Prometheus text exposition format, version 0.0.4.
func (s *Service) WriteMetrics(w io.Writer) {
	family := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	st := s.authority.state()
	family("conduit_issuer_expiry_seconds", "gauge", "When the issuer that signs expires, or a certificate above it, seconds since 1970; 0 without one.")
	fmt.Fprintf(w, "conduit_issuer_expiry_seconds %d\n", unix(expires(st.active)))
	family("conduit_issuer_usable", "gauge", "1 when what is in the Secret can be used; else an earlier issuer signs, or none.")
	fmt.Fprintf(w, "conduit_issuer_usable %d\n", number(st.secret != nil && st.secretErr == nil))
	family("conduit_issuer_pending", "gauge", "1 while a new issuer waits until everybody knows its root.")
	fmt.Fprintf(w, "conduit_issuer_pending %d\n", number(st.next != nil))
	family("conduit_trust_bundle_roots", "gauge", "Root certificates in the trust bundle; 0 when there is none to serve.")
	fmt.Fprintf(w, "conduit_trust_bundle_roots %d\n", st.bundle.size())
	if st.bundle != nil {
		family("conduit_trust_bundle_expiry_seconds", "gauge", "When the first root expires, seconds since 1970.")
		fmt.Fprintf(w, "conduit_trust_bundle_expiry_seconds %d\n", unix(st.bundle.expires()))
	}
	var own time.Time
	if l := s.own.Leaves(); len(l) > 0 {
		own = l[0].NotAfter
	}
	family("conduit_controller_certificate_expiry_seconds", "gauge", "When the controller's own certificate expires, seconds since 1970; 0 without one.")
	fmt.Fprintf(w, "conduit_controller_certificate_expiry_seconds %d\n", unix(own))
	family("conduit_certificates_issued_total", "counter", "Certificates signed for pods' identities.")
	fmt.Fprintf(w, "conduit_certificates_issued_total %d\n", s.counts.issued.Load())
	family("conduit_token_reviews_total", "counter", "Tokens that the API server was asked about.")
	fmt.Fprintf(w, "conduit_token_reviews_total %d\n", s.counts.reviews.Load())
	family("conduit_root_watchers", "gauge", "Streams by which agents follow the trust bundle.")
	fmt.Fprintf(w, "conduit_root_watchers %d\n", s.counts.watchers.Load())
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	family("conduit_identity_refused_total", "counter", "Callers and certificate requests refused, by reason.")
	for _, reason := range reasons {
		fmt.Fprintf(w, "conduit_identity_refused_total{reason=%q} %d\n", reason, s.counts.refused[reason])
	}
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}
