// Package demoapp is the application that `conduit demo` runs: small real servers and clients that know nothing of a
// mesh. It is one program in several roles, each a process in a pod:
//
//	loadgen --http/1.1--> web --http/1.1--> api --grpc, unary and streaming--> votes
//	                       |                 +--http/2 (h2c)--> catalog
//	                       +--raw tcp, the server speaks first--> cache
//
// Every server says in its answers which node it runs on, so that clients know, without asking the mesh, which calls
// crossed nodes. Every answer is derived from its request, and clients check it: an answer that was meant for another
// request counts as a failure.
package demoapp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// The roles.
const (
	Loadgen = "loadgen"
	Web     = "web"
	API     = "api"
	Votes   = "votes"
	Catalog = "catalog"
	Cache   = "cache"
)

// nodeField is where HTTP and gRPC servers name their node.
const nodeField = "x-demo-node"

// callTimeout bounds one call of one client.
const callTimeout = 5 * time.Second

// Config is one process of the application.
type Config struct {
	Role    string            `json:"role"`
	Name    string            `json:"name"`              // of the pod
	Node    string            `json:"node"`              // that the pod runs on
	Listen  string            `json:"listen,omitempty"`  // host:port; empty for the load generator
	Targets map[string]string `json:"targets,omitempty"` // role -> host:port, for the roles that it calls
	Rate    float64           `json:"rate"`              // load generator: requests started per second
	Log     *slog.Logger      `json:"-"`
}

// Main is Run for a process: its one argument is a Config in JSON, and it logs to errOut.
func Main(ctx context.Context, arg string, in io.Reader, out, errOut io.Writer) error {
	cfg := Config{Log: slog.New(slog.NewTextHandler(errOut, nil))}
	if err := json.Unmarshal([]byte(arg), &cfg); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return Run(ctx, cfg, in, out)
}

// Event is one line that a process writes to its standard output.
type Event struct {
	Event string `json:"event"` // ready, warm, stopped, report, failed
	Error string `json:"error,omitempty"`
	Calls []Call `json:"calls,omitempty"` // report: everything since the process started
}

// Run serves until in ends or ctx is done. Commands are lines of in: "warm" (load generator: call until everything
// answers), "go" and "stop" (load), "report". Events are JSON lines of out.
func Run(ctx context.Context, cfg Config, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &app{cfg: cfg, tally: newTally(), out: json.NewEncoder(out)}
	stop, err := a.start(ctx)
	if err != nil {
		a.emit(Event{Event: "failed", Error: err.Error()})
		return err
	}
	defer stop()
	a.emit(Event{Event: "ready"})
	lines := make(chan string)
	go func() {
		defer close(lines)
		for sc := bufio.NewScanner(in); sc.Scan(); {
			select {
			case lines <- sc.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case line, ok := <-lines:
			if !ok {
				return nil // whoever started this process is gone
			}
			a.command(ctx, line)
		}
	}
}

// app is a running process of the application.
type app struct {
	cfg   Config
	tally *tally
	load  *load // load generator only

	mu  sync.Mutex // guards out
	out *json.Encoder
}

func (a *app) emit(e Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.out.Encode(e) // the reader is gone: the end of in will say so
}

func (a *app) command(ctx context.Context, line string) {
	switch line {
	case "report":
		a.emit(Event{Event: "report", Calls: a.tally.calls()})
	case "warm":
		a.answer("warm", func() error { return a.load.warm(ctx) })
	case "go":
		a.load.start(ctx)
	case "stop":
		a.answer("stopped", func() error { a.load.stop(); return nil })
	default:
		a.cfg.Log.Error("unknown command", "command", line)
	}
}

func (a *app) answer(event string, f func() error) {
	e := Event{Event: event}
	if err := f(); err != nil {
		e = Event{Event: "failed", Error: err.Error()}
	}
	a.emit(e)
}

// start brings the role up; stop ends it.
func (a *app) start(ctx context.Context) (stop func(), err error) {
	if a.cfg.Role == Loadgen {
		if a.cfg.Rate <= 0 {
			return nil, fmt.Errorf("rate %v: want more than 0 requests per second", a.cfg.Rate)
		}
		c, err := a.newCaller(Web)
		if err != nil {
			return nil, err
		}
		a.load = newLoad(a.cfg.Rate, func(ctx context.Context, n int64) error { return c.http1(ctx, "/vote", n) })
		return a.load.stop, nil
	}
	l, err := net.Listen("tcp", a.cfg.Listen)
	if err != nil {
		return nil, err
	}
	switch a.cfg.Role {
	case Web:
		return a.serveWeb(l)
	case API:
		return a.serveAPI(l)
	case Votes:
		return serveVotes(l, a.cfg), nil
	case Catalog:
		return a.serveHTTP(l, catalog(a.cfg.Node), true), nil
	case Cache:
		return serveCache(ctx, l, a.cfg.Node), nil
	}
	l.Close()
	return nil, fmt.Errorf("no role %q: want loadgen, web, api, votes, catalog or cache", a.cfg.Role)
}

// serveHTTP serves HTTP/1.1, or HTTP/2 without TLS and nothing else.
func (a *app) serveHTTP(l net.Listener, h http.Handler, h2c bool) (stop func()) {
	p := new(http.Protocols)
	p.SetHTTP1(!h2c)
	p.SetUnencryptedHTTP2(h2c)
	s := &http.Server{Handler: h, Protocols: p, ReadHeaderTimeout: callTimeout,
		ErrorLog: slog.NewLogLogger(a.cfg.Log.Handler(), slog.LevelDebug)}
	go s.Serve(l)
	return func() { s.Close() }
}
