package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/control/access"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"
)

// Limits of what clients may ask, as api/proto documents them.
const (
	maxSubscribe = 4096 // addresses in a message
	maxLookup    = 256
	maxPage      = 1000
	defaultPage  = 500
	maxStreams   = 2 // of one agent: a new process and the one that it replaces
)

// pause is the least time between two sends to one stream: what changes in the meantime is sent together.
const pause = 20 * time.Millisecond

// Config says how the service behaves; zero values are defaults.
type Config struct {
	// Starts bounds how many streams begin in a second, since each begins with much to send. Those that come early wait up to
	// MaxWait, and are told to come again after that. Default 100, and 5 s.
	Starts  int
	MaxWait time.Duration
	// Drain is over how much time streams are ended, each at a time of its own, once Draining is closed. Default 5 s.
	Drain    time.Duration
	Draining <-chan struct{} // may be nil
	Synced   func() bool     // whether the index is complete; nil: it is
	Log      *slog.Logger
}

// Server is the DiscoveryService. It is safe for concurrent use.
type Server struct {
	x       *Index
	cfg     Config
	limiter *rate.Limiter
	metrics *Metrics

	mu     sync.Mutex
	agents map[string][]*life // by node, oldest first
}

// NewServer serves x.
func NewServer(x *Index, cfg Config) *Server {
	if cfg.Starts == 0 {
		cfg.Starts = 100
	}
	if cfg.MaxWait == 0 {
		cfg.MaxWait = 5 * time.Second
	}
	if cfg.Drain == 0 {
		cfg.Drain = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{x: x, cfg: cfg, limiter: rate.NewLimiter(rate.Limit(cfg.Starts), cfg.Starts), metrics: newMetrics(x), agents: map[string][]*life{}}
}

// Metrics are the service's, for the controller's exposition.
func (s *Server) Metrics() *Metrics { return s.metrics }

func (s *Server) synced() error {
	if s.cfg.Synced != nil && !s.cfg.Synced() {
		return connect.NewError(connect.CodeUnavailable, errors.New("the controller has not read the cluster yet"))
	}
	return nil
}

// admit waits for the stream's turn.
func (s *Server) admit(ctx context.Context) error {
	r := s.limiter.Reserve()
	delay := r.Delay()
	if delay > s.cfg.MaxWait {
		r.Cancel()
		s.metrics.deferred.Add(1)
		err := connect.NewError(connect.CodeResourceExhausted, errors.New("too many streams begin at once: come again"))
		err.Meta().Set("Retry-After", strconv.Itoa(1+int(delay.Seconds())))
		return err
	}
	select {
	case <-time.After(delay):
		return nil
	case <-ctx.Done():
		r.Cancel()
		return ctx.Err()
	}
}

var errReplaced = connect.NewError(connect.CodeAborted, errors.New("a newer stream of this agent has taken the place of this one"))

// life is one stream's.
type life struct{ end context.CancelCauseFunc }

// register notes a stream of an agent, and ends the oldest beyond maxStreams. People's tools, which have no node, have no such bound.
func (s *Server) register(ctx context.Context, node string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if node == "" {
		return ctx, func() { cancel(context.Canceled) }
	}
	mine := &life{cancel}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.agents[node] = append(s.agents[node], mine)
	for len(s.agents[node]) > maxStreams {
		s.agents[node][0].end(errReplaced)
		s.agents[node] = slices.Delete(s.agents[node], 0, 1)
	}
	return ctx, func() {
		cancel(context.Canceled)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.agents[node] = slices.DeleteFunc(s.agents[node], func(l *life) bool { return l == mine })
		if len(s.agents[node]) == 0 {
			delete(s.agents, node)
		}
	}
}

// Watch is the DiscoveryService's.
func (s *Server) Watch(ctx context.Context, stream *connect.BidiStream[discoveryv1.WatchRequest, discoveryv1.WatchResponse]) error {
	if err := s.synced(); err != nil {
		return err
	}
	if err := s.admit(ctx); err != nil {
		return err
	}
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	if err := check(first); err != nil {
		return err
	}
	ctx, done := s.register(ctx, access.From(ctx).Node)
	defer done()
	st := s.x.Open(access.From(ctx).Node, first.Resume)
	defer st.Close()
	if !st.Subscribe(first.Subscribe) {
		return errTooMuch
	}
	ended := make(chan error, 1)
	go func() { ended <- s.receive(st, stream) }()
	return s.send(ctx, st, stream, ended)
}

var errTooMuch = connect.NewError(connect.CodeResourceExhausted, errors.New("too many subscriptions that were refused wait to be answered"))

func check(m *discoveryv1.WatchRequest) error {
	if n := len(m.Subscribe) + len(m.Unsubscribe); n > maxSubscribe {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d addresses in one message, more than %d", n, maxSubscribe))
	}
	return nil
}

// receive takes in what the client asks for until it ends its side.
func (s *Server) receive(st *Stream, stream *connect.BidiStream[discoveryv1.WatchRequest, discoveryv1.WatchResponse]) error {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := check(m); err != nil {
			return err
		}
		if m.Resume != nil {
			return connect.NewError(connect.CodeInvalidArgument, errors.New("resume is for the first message"))
		}
		if m.Applied != 0 {
			s.metrics.applied(m.Applied)
		}
		st.Unsubscribe(m.Unsubscribe)
		if !st.Subscribe(m.Subscribe) {
			return errTooMuch
		}
	}
}

// send sends what changes until one side ends it.
func (s *Server) send(ctx context.Context, st *Stream, stream *connect.BidiStream[discoveryv1.WatchRequest, discoveryv1.WatchResponse], ended <-chan error) error {
	draining := s.cfg.Draining
	var over <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-ended:
			return err
		case <-draining:
			draining, over = nil, time.After(rand.N(s.cfg.Drain))
			continue
		case <-over:
			return connect.NewError(connect.CodeUnavailable, errors.New("this replica of the controller is going away"))
		case <-st.Wake():
		}
		for _, m := range st.Next() {
			if err := stream.Send(m); err != nil {
				return err
			}
			s.metrics.sent(m)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// Lookup is the DiscoveryService's.
func (s *Server) Lookup(_ context.Context, req *discoveryv1.LookupRequest) (*discoveryv1.LookupResponse, error) {
	if err := s.synced(); err != nil {
		return nil, err
	}
	if n := len(req.Addresses); n == 0 || n > maxLookup {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d addresses, want 1 to %d", n, maxLookup))
	}
	var addrs []netip.AddrPort
	for _, text := range req.Addresses {
		a, err := parseText(text)
		if err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
		addrs = append(addrs, a)
	}
	return s.x.Lookup(addrs), nil
}

// parseText reads an address, with or without a port, as people write it.
func parseText(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil && a.Zone() == "" {
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Addr().Zone() != "" {
		return a, fmt.Errorf("%.64q is no address; want forms like 10.96.0.7, 10.96.0.7:80, [fd00::7]:80", text)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

func page(size uint32) int {
	if size == 0 {
		return defaultPage
	}
	return int(min(size, maxPage))
}

// ListServices is the DiscoveryService's.
func (s *Server) ListServices(_ context.Context, req *discoveryv1.ListServicesRequest) (*discoveryv1.ListServicesResponse, error) {
	if err := s.synced(); err != nil {
		return nil, err
	}
	found, at, last := s.x.ListServices(req.Namespace, req.PageToken, page(req.PageSize))
	res := &discoveryv1.ListServicesResponse{Position: at, Services: found}
	if !last {
		res.NextPageToken = found[len(found)-1].Key
	}
	return res, nil
}

// ListWorkloads is the DiscoveryService's.
func (s *Server) ListWorkloads(_ context.Context, req *discoveryv1.ListWorkloadsRequest) (*discoveryv1.ListWorkloadsResponse, error) {
	if err := s.synced(); err != nil {
		return nil, err
	}
	found, at, last := s.x.ListWorkloads(req.Namespace, req.Node, req.PageToken, page(req.PageSize))
	res := &discoveryv1.ListWorkloadsResponse{Position: at, Workloads: found}
	if !last {
		res.NextPageToken = WorkloadKey(found[len(found)-1])
	}
	return res, nil
}
