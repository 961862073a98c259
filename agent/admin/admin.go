// Package admin serves the node's metrics, health and debugging pages over HTTP.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"conduit.io/conduit/agent/enrol"
	"conduit.io/conduit/agent/kubelet"
	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/agent/proxylink"
)

const (
	// DefaultAddr is where the pages are unless told otherwise; when it is taken, another port is used.
	DefaultAddr = "127.0.0.1:4191"

	addrFile     = "admin.addr"
	statsTimeout = 5 * time.Second
)

// AddrFile is the path, in a run directory, of the file that holds the address served on.
func AddrFile(runDir string) string { return filepath.Join(runDir, addrFile) }

// Faulty tells what is wrong with what describes the pods.
type Faulty interface{ Faults() []manifest.Fault }

// Config says what the pages show.
type Config struct {
	Addr       string // "" means DefaultAddr
	RunDir     string
	Build      string
	Node       string
	Manager    *enrol.Manager
	Ready      func(context.Context) (reason string, err error) // whether pods can be added
	Manifests  Faulty
	Supervisor *proxylink.Supervisor
	Kubelet    *kubelet.Watcher
	Log        *slog.Logger
}

// Server serves the pages.
type Server struct {
	cfg Config
	l   net.Listener
}

// Listen binds the address, and writes it to the run directory.
func Listen(cfg Config) (*Server, error) {
	addr := cfg.Addr
	if addr == "" {
		addr = DefaultAddr
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) && addr == DefaultAddr {
		host, _, _ := net.SplitHostPort(addr)
		if l, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err == nil {
			cfg.Log.Warn("default admin address is taken; using another port", "taken", addr, "addr", l.Addr().String())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen for admin requests: %w (choose another address with --admin)", err)
	}
	path := AddrFile(cfg.RunDir)
	err = os.WriteFile(path+".new", []byte(l.Addr().String()+"\n"), 0o644)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("write admin address: %w", err)
	}
	return &Server{cfg: cfg, l: l}, nil
}

// Addr is the address served on.
func (s *Server) Addr() string { return s.l.Addr().String() }

// Serve serves until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.ready)
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET /debug/pods", s.pods)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn)}
	stop := context.AfterFunc(ctx, func() {
		os.Remove(AddrFile(s.cfg.RunDir))
		srv.Close()
	})
	defer stop()
	if err := srv.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve admin requests: %w", err)
	}
	return nil
}

// ready says whether pods can be added. Faults of manifests are shown, but they do not make the node unready: what the
// files said before is in force.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	state, why := s.cfg.Supervisor.State()
	if reason, err := s.cfg.Ready(r.Context()); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "not ready: %s: %v\n", reason, err)
	} else {
		fmt.Fprintln(w, "ready")
	}
	fmt.Fprintf(w, "proxy: %s\n", state)
	if why != nil {
		fmt.Fprintf(w, "proxy error: %v\n", why)
	}
	for _, f := range s.cfg.Manifests.Faults() {
		fmt.Fprintf(w, "warning: %s\n", f)
	}
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	pods, err := s.cfg.Manager.Pods()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(pods) // the client went away
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	own := s.node().Metrics()
	fmt.Fprint(w, own)
	l := s.cfg.Manager.Link()
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), statsTimeout)
	defer cancel()
	stats, err := l.Stats(ctx)
	if err != nil {
		s.cfg.Log.Warn("proxy metrics not read", "error", err)
		return
	}
	fmt.Fprint(w, without(stats, families(own)))
}
