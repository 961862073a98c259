// Package control is the control plane: on Kubernetes a replica of the controller, and without it a server of the trust
// bundle of a certificate authority's directory.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"conduit.io/conduit/mesh"
)

// DefaultAddr is where the controller's API is served unless told otherwise.
const DefaultAddr = "127.0.0.1:8085"

// shutdownGrace is how long requests may take to end when the controller stops.
const shutdownGrace = 5 * time.Second

// Config says what a Server serves.
type Config struct {
	Addr  string // host:port to listen on; default DefaultAddr
	CADir string // with ca.crt, the trust bundle; it may come, change and go while the server runs
	Log   *slog.Logger
}

// Validate completes cfg and reports what is wrong with it.
func (cfg *Config) Validate() error {
	if cfg.Addr == "" {
		cfg.Addr = DefaultAddr
	}
	if cfg.CADir == "" {
		return errors.New("no directory of the certificate authority: set --ca-dir")
	}
	if _, _, err := net.SplitHostPort(cfg.Addr); err != nil {
		return fmt.Errorf("address %q: %w", cfg.Addr, err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Server answers the controller's HTTP API. It is safe for concurrent use.
type Server struct {
	cfg      Config
	bundle   *bundle
	started  time.Time
	handler  http.Handler
	requests map[string]*answers // by route; fixed after New
}

// answers counts responses by the hundreds of their status.
type answers [6]atomic.Uint64

// New makes a Server.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, bundle: newBundle(cfg.CADir), started: time.Now(), requests: map[string]*answers{}}
	s.handler = s.routes()
	return s, nil
}

// Run listens and serves until ctx ends, and lets requests under way finish.
func (s *Server) Run(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("serve the controller's API: %w (another program may use the port: choose one with --addr)", err)
	}
	return s.Serve(ctx, l)
}

// Serve is Run on a listener, which it closes.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	h := &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn)}
	s.cfg.Log.Info("controller serves", "address", l.Addr().String(), "ca_dir", s.cfg.CADir, "version", mesh.Version())
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		done <- h.Shutdown(grace)
	}()
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the controller's API: %w", err)
	}
	err := <-done
	s.cfg.Log.Info("controller ends")
	return err
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for route, h := range map[string]http.HandlerFunc{
		"GET /healthz": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") },
		"GET /readyz":  s.ready,
		"GET /metrics": s.metrics,
		"GET /version": func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, 200, map[string]string{"version": mesh.Version()})
		},
		"GET /v1/trust-bundle": s.trustBundle,
	} {
		count := &answers{}
		s.requests[route] = count
		mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) {
			sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
			h(sw, r)
			count[min(sw.status/100, len(count)-1)].Add(1)
		})
	}
	return mux
}

// statusWriter remembers the status.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader is http.ResponseWriter's.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// failure is the body of an answer that is an error.
type failure struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
}

// ready: the controller is ready when it has what it serves.
func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if _, err := s.bundle.get(); err != nil {
		writeJSON(w, http.StatusServiceUnavailable, bundleFailure(err))
		return
	}
	fmt.Fprintln(w, "ok")
}

// trustBundle answers with the roots as PEM. The ETag changes when they do.
func (s *Server) trustBundle(w http.ResponseWriter, r *http.Request) {
	b, err := s.bundle.get()
	if err != nil {
		writeJSON(w, http.StatusServiceUnavailable, bundleFailure(err))
		return
	}
	w.Header().Set("ETag", b.etag)
	if r.Header.Get("If-None-Match") == b.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	w.Header().Set("Content-Length", strconv.Itoa(len(b.pem)))
	_, _ = w.Write(b.pem)
}

func bundleFailure(err error) failure {
	return failure{Error: "no trust bundle: " + err.Error(),
		Hint: "start an agent with the same --ca-dir, which makes the authority, or put its ca.crt there"}
}
