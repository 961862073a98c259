// Package server is the controller's API on the network: gRPC, gRPC-Web and JSON from one handler, health and reflection.
package server

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"
	"conduit.io/conduit/api/identityv1/identityv1connect"
	"conduit.io/conduit/api/nodev1/nodev1connect"
	"conduit.io/conduit/control/access"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
)

// grace is how long calls may take to end after the streams have been ended.
const grace = 5 * time.Second

// Config says what is served.
type Config struct {
	TLS       *tls.Config // for clients; TLS 1.3 or newer
	Authn     access.Authenticator
	Authz     access.Authorizer
	Discovery discoveryv1connect.DiscoveryServiceHandler
	Identity  identityv1connect.IdentityServiceHandler
	Nodes     nodev1connect.NodeServiceHandler
	// Leader passes calls of NodeService on to the replica that leads, and reports false when this one does; nil: it always does.
	Leader func(w http.ResponseWriter, r *http.Request) bool
	// Ready says why the controller does not serve; nil: it does.
	Ready func() error
	// Drain is closed by Serve when its ctx ends; streams end within DrainTime.
	Drain     chan struct{}
	DrainTime time.Duration
	Log       *slog.Logger
}

// Server serves the API. It is safe for concurrent use.
type Server struct {
	cfg     Config
	handler http.Handler
	codes   map[string]*codes // by procedure; fixed
	told    access.Told
	crowd   crowd
}

// codes counts the ends of calls by their code; 0 is success.
type codes [17]atomic.Uint64

// New makes a Server.
func New(cfg Config) (*Server, error) {
	if cfg.TLS == nil || cfg.TLS.MinVersion < tls.VersionTLS13 {
		return nil, errors.New("serve the controller's API: want TLS 1.3")
	}
	s := &Server{cfg: cfg, codes: map[string]*codes{}}
	gate := &access.Gate{Authn: cfg.Authn, Authz: cfg.Authz, Refused: s.refused, Rules: map[string]access.Rule{
		identityv1connect.IdentityServiceGetRootsProcedure:   access.Public,
		identityv1connect.IdentityServiceCertifyProcedure:    access.AgentsOnly,
		nodev1connect.NodeServiceReportProcedure:             access.AgentsOnly,
		identityv1connect.IdentityServiceWatchRootsProcedure: access.AgentsToo,
		discoveryv1connect.DiscoveryServiceWatchProcedure:    access.AgentsToo,
		healthCheck: access.Public, healthWatch: access.Public, reflection: access.Public, reflectionAlpha: access.Public,
	}}
	counted := connect.WithInterceptors(counter{s})
	options := connect.WithHandlerOptions(counted, connect.WithRecover(s.recovered),
		connect.WithCompressMinBytes(1<<10), connect.WithCompression("gzip", newGunzip, newGzip),
		connect.WithConditionalHandlerOptions(func(spec connect.Spec) []connect.HandlerOption {
			return []connect.HandlerOption{connect.WithReadMaxBytes(readMax(spec.Procedure))}
		}))
	mux := http.NewServeMux()
	serve := func(path string, h http.Handler) { mux.Handle(path, s.known(gate.Handler(s.bounded(s.understood(h))))) }
	serve(discoveryv1connect.NewDiscoveryServiceHandler(cfg.Discovery, options))
	serve(identityv1connect.NewIdentityServiceHandler(cfg.Identity, options))
	path, nodes := nodev1connect.NewNodeServiceHandler(cfg.Nodes, options)
	serve(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cfg.Leader == nil || !cfg.Leader(w, r) {
			nodes.ServeHTTP(w, r)
		}
	}))
	names := []string{discoveryv1connect.DiscoveryServiceName, identityv1connect.IdentityServiceName, nodev1connect.NodeServiceName, healthName}
	reflector := grpcreflect.NewStaticReflector(names...)
	serve(grpcreflect.NewHandlerV1(reflector, connect.WithReadMaxBytes(maxPublic), counted))
	serve(grpcreflect.NewHandlerV1Alpha(reflector, connect.WithReadMaxBytes(maxPublic), counted))
	newHealth(names, cfg.Ready, cfg.Drain).register(serve, counted)
	for _, p := range []string{discoveryv1connect.DiscoveryServiceWatchProcedure, discoveryv1connect.DiscoveryServiceLookupProcedure,
		discoveryv1connect.DiscoveryServiceListServicesProcedure, discoveryv1connect.DiscoveryServiceListWorkloadsProcedure,
		identityv1connect.IdentityServiceCertifyProcedure, identityv1connect.IdentityServiceGetRootsProcedure, identityv1connect.IdentityServiceWatchRootsProcedure,
		nodev1connect.NodeServiceReportProcedure, nodev1connect.NodeServiceListNodesProcedure,
		healthCheck, healthWatch, reflection, reflectionAlpha} {
		s.codes[p] = &codes{}
	}
	s.handler = fromPages(mux)
	return s, nil
}

// newGzip compresses at a sixth of the usual level's cost, and a fifth larger: when all agents come back at once, time is dearer.
func newGzip() connect.Compressor {
	w, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil { // there is no such level
		panic(err)
	}
	return w
}

func newGunzip() connect.Decompressor { return &gzip.Reader{} }

func (s *Server) recovered(_ context.Context, spec connect.Spec, _ http.Header, what any) error {
	s.cfg.Log.Error("call panicked", "procedure", spec.Procedure, "panic", fmt.Sprint(what))
	return connect.NewError(connect.CodeInternal, errors.New("internal error"))
}

// Serve serves until ctx ends, and then ends in order: streams are ended one by one, and calls under way finish. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	h := &http.Server{Handler: s.handler, TLSConfig: oneByOne(s.cfg.TLS, runtime.GOMAXPROCS(0)), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10,
		// A peer that is gone without a word would keep its subscriptions.
		HTTP2:    &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second, MaxConcurrentStreams: 100},
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)}
	ended := make(chan error, 1)
	go func() { ended <- h.ServeTLS(l, "", "") }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve the controller's API: %w", err)
	case <-ctx.Done():
	}
	close(s.cfg.Drain)
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTime+grace)
	defer cancel()
	err := h.Shutdown(limit)
	if err != nil {
		_ = h.Close() // what is left had its time
	}
	return err
}
