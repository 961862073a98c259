package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	certs "conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
)

// Config says what a Service works with.
type Config struct {
	Client      kubernetes.Interface
	Questions   kubernetes.Interface // for what callers make it ask: whose a token is, where a pod runs; nil: Client
	Namespace   string               // the controller's; default conduit
	TrustDomain string               // default cluster.local
	DNSNames    []string             // of the controller's own certificate
	LeafLife    time.Duration        // default 24 h
	RootLife    time.Duration        // of issuers that the controller makes; default a year. They are replaced after two thirds
	RootDelay   time.Duration        // how long a new root is known before anything is signed under it; default 2 min, a kubelet's refresh
	TokenLife   time.Duration        // how long a token is believed without asking again; default 1 min
	Pods        Pods                 // nil: none is known, and every request looks them up
	Draining    <-chan struct{}      // closed when the replica is about to end; nil: it never says so
	DrainTime   time.Duration        // over which streams end then
	Log         *slog.Logger
	Now         func() time.Time // the clock; nil means time.Now
}

// The defaults of Config.
const (
	DefaultNamespace   = "conduit"
	DefaultTrustDomain = "cluster.local"
	DefaultRootLife    = 365 * 24 * time.Hour
	DefaultRootDelay   = 2 * time.Minute
	DefaultTokenLife   = time.Minute
)

// Validate completes c and reports what is wrong with it.
func (c *Config) Validate() error {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&c.LeafLife, certs.LeafLife)
	set(&c.RootLife, DefaultRootLife)
	set(&c.RootDelay, DefaultRootDelay)
	set(&c.TokenLife, DefaultTokenLife)
	if c.Questions == nil {
		c.Questions = c.Client
	}
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	if c.TrustDomain == "" {
		c.TrustDomain = DefaultTrustDomain
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Client == nil:
		return errors.New("no client of the API server")
	case !mesh.ValidTrustDomain(c.TrustDomain):
		return fmt.Errorf("bad trust domain %q", c.TrustDomain)
	case c.LeafLife < time.Minute || c.RootLife < 3*c.LeafLife:
		return fmt.Errorf("certificates must live for a minute at least (%v), and issuers three times as long (%v)", c.LeafLife, c.RootLife)
	case c.RootDelay < 0 || c.TokenLife < 0:
		return errors.New("durations cannot be negative")
	}
	return nil
}

// Service is the authority of one replica. It is safe for concurrent use.
type Service struct {
	cfg       Config
	client    kubernetes.Interface
	log       *slog.Logger
	authority *authority
	tokens    *tokens
	own       *certs.Keeper // the controller's certificate
	parsed    atomic.Pointer[parsed]
	lookups   *lookups
	replays   *replays
	counts    counts
	seen      chan struct{}

	toldSecret, toldBundle string
}

// New makes a Service; call Run.
func New(cfg Config) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	s := &Service{cfg: cfg, client: cfg.Client, log: cfg.Log, seen: make(chan struct{}, 1),
		authority: newAuthority(cfg.TrustDomain, cfg.LeafLife, cfg.Now)}
	s.counts.log = cfg.Log
	s.counts.now = cfg.Now
	s.tokens = newTokens(cfg.Questions.AuthenticationV1().TokenReviews(), "system:serviceaccount:"+cfg.Namespace+":"+AgentAccount, cfg.TokenLife, cfg.Now, &s.counts)
	s.lookups = newLookups(cfg.Questions.CoreV1(), cfg.Pods, cfg.Now)
	s.replays = newReplays(cfg.LeafLife, cfg.Now)
	s.own = certs.NewKeeper(ownIssuer{s}, cfg.Now)
	s.own.Want([]mesh.Identity{s.self()})
	return s, nil
}

// Run follows Secret and ConfigMap, and keeps the controller's own certificate, until ctx ends. Every replica runs it.
func (s *Service) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { s.watch(ctx, "secrets", IssuerSecret, &corev1.Secret{}, s.seeSecret) })
	wg.Go(func() { s.watch(ctx, "configmaps", RootsConfigMap, &corev1.ConfigMap{}, s.seeRoots) })
	wg.Go(func() {
		s.own.Run(ctx, func([]*certs.Leaf) {}, func(err error) {
			if !errors.Is(err, errNoIssuer) { // at the start, and told elsewhere
				s.log.Error("controller's own certificate not renewed; trying again", "error", err)
			}
		})
	})
	wg.Wait()
}

// Ready reports why nothing can be signed or served now; nil when it can.
func (s *Service) Ready() error {
	if _, err := s.authority.signer(); err != nil {
		return err
	}
	if !s.own.Holds(s.self()) {
		return errors.New("the controller has no certificate of its own yet")
	}
	return nil
}

// self is the controller's identity.
func (s *Service) self() mesh.Identity {
	return mesh.Identity{TrustDomain: s.cfg.TrustDomain, Namespace: s.cfg.Namespace, ServiceAccount: ControllerAccount}
}
