package proxylink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"conduit.io/conduit/api/node"
)

// State is where the Supervisor is.
type State string

// The states. From Finding, the proxy is found (Syncing) or started; from Syncing it becomes Ready, or the link is lost
// and it is Finding again; Waiting is the pause after a failure.
const (
	Finding State = "finding"
	Syncing State = "syncing"
	Ready   State = "ready"
	Waiting State = "waiting"
	Stopped State = "stopped"
)

const (
	firstPause = 50 * time.Millisecond
	mostPause  = 5 * time.Second
	// patience is how many times in a row a proxy may fail to answer before it is killed: its pods' connections hang
	// meanwhile, and a new proxy serves them at once.
	patience = 3
	// starting is how many tries find no proxy where it starts together with the agent: the first half second.
	starting = 4
	// settled is how long a proxy must have been ready for earlier failures to be forgotten.
	settled = 5 * time.Second
	// endNoticed is how long after its socket the end of a proxy is heard of.
	endNoticed = time.Second
	// probeEvery is the default of Config.ProbeEvery.
	probeEvery = 5 * time.Second
	// lookEvery is how often an agent looks for a proxy that has taken the socket.
	lookEvery = 250 * time.Millisecond
	// retireGrace is how long a proxy of another version may finish its connections.
	retireGrace = 10 * time.Minute
)

// Config configures a Supervisor.
type Config struct {
	RunDir string
	Binary string // conduit-proxy; empty: the proxy is started, and ended when it hangs, by others
	Cgroup string // cgroup2 directory that the data path is attached to; empty: the proxy starts where the agent is
	Log    *slog.Logger
	// HelloTimeout is how long a proxy may take to greet, and to answer a probe; 0 means 10 s.
	HelloTimeout time.Duration
	// ProbeEvery is how often a proxy is asked whether its loops turn; 0 means 5 s.
	ProbeEvery time.Duration
	// Attach brings a proxy up to date; an error gives the link up. Detach follows when the link has ended.
	Attach func(ctx context.Context, l *Link) error
	Detach func(l *Link)
}

// Supervisor keeps one proxy running and linked.
type Supervisor struct {
	cfg Config

	mu     sync.Mutex
	state  State
	why    error       // what went wrong last, since it was Ready
	starts int         // how many proxies it started
	served int         // how many proxies it was Ready with
	latest os.FileInfo // the socket of the last of them: in containers all have the same process ID
	exited <-chan struct{}

	answered bool // the link in hand, or the last one, has answered a probe; Run's goroutine only
}

// New makes a Supervisor; call Run.
func New(cfg Config) *Supervisor {
	if cfg.HelloTimeout == 0 {
		cfg.HelloTimeout = helloTimeout
	}
	if cfg.ProbeEvery == 0 {
		cfg.ProbeEvery = probeEvery
	}
	return &Supervisor{cfg: cfg, state: Finding}
}

// State is the state, and what went wrong last, unless it is Ready.
func (s *Supervisor) State() (State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.why
}

// Starts is how many proxies the Supervisor has started.
func (s *Supervisor) Starts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starts
}

// Served is how many processes the Supervisor was Ready with, whoever has started them.
func (s *Supervisor) Served() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served
}

func (s *Supervisor) set(state State, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
	if why != nil || state == Ready {
		s.why = why
	}
}

// ready is set, with the proxy that is.
func (s *Supervisor) ready(l *Link) {
	s.set(Ready, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.latest == nil || !os.SameFile(l.at, s.latest) || !l.at.ModTime().Equal(s.latest.ModTime()) {
		s.latest, s.served = l.at, s.served+1
	}
}

// Run works until ctx ends. The proxy goes on after that.
func (s *Supervisor) Run(ctx context.Context) {
	defer s.set(Stopped, nil)
	failures, hung := 0, 0
	for ctx.Err() == nil {
		began := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if s.answered { // it hung only after that
			s.answered, hung = false, 0
		}
		if hung++; !errors.Is(err, errHung) {
			hung = 0
		} else if hung >= patience {
			hung = 0
			s.end()
		}
		if err == nil {
			s.cfg.Log.Warn("proxy link lost; looking for the proxy")
		}
		if time.Since(began) > settled {
			failures = 0
		}
		wait := pause(failures)
		failures++
		if err != nil {
			s.set(Waiting, err)
			level := slog.LevelError
			if failures <= starting {
				level = slog.LevelInfo
			}
			s.cfg.Log.Log(ctx, level, "proxy not ready", "error", err, "retry_in", wait)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// end ends a proxy that hangs.
func (s *Supervisor) end() {
	if s.cfg.Binary == "" {
		s.cfg.Log.Error("proxy does not answer; its container's probe is to end it", "tries", patience)
		return
	}
	s.cfg.Log.Error("proxy does not answer; killing it", "tries", patience, "error", Kill(s.cfg.RunDir, helloTimeout))
}

// pause is how long to wait after so many failures in a row: not at all after the first, so that a proxy that was
// killed is back at once.
func pause(failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	return min(firstPause<<min(failures-1, 20), mostPause)
}

// once finds or starts the proxy, attaches to it, and stays until the link ends. Where others start proxies and a new one takes the
// socket, it goes over to that, with every pod, before it leaves the former. A nil error is a link that was ready.
func (s *Supervisor) once(ctx context.Context) error {
	s.set(Finding, nil)
	l, err := s.find()
	if err != nil {
		return err
	}
	if l.Hello().Version != node.Version {
		defer l.Close()
		return s.stranger(l)
	}
	s.set(Syncing, nil)
	if err := s.attach(ctx, l); err != nil {
		return err
	}
	for {
		next, err := s.stay(l)
		if next == nil {
			s.drop(l)
			return err
		}
		s.cfg.Log.Info("another proxy has taken the socket; going over to it", "build", next.Hello().Build)
		err = s.attach(ctx, next)
		s.drop(l)
		if err != nil {
			return err
		}
		l = next
	}
}

// attach brings a proxy up to date; on an error it is dropped.
func (s *Supervisor) attach(ctx context.Context, l *Link) error {
	l.release = context.AfterFunc(ctx, l.Close)
	if err := s.cfg.Attach(ctx, l); err != nil {
		s.drop(l)
		return fmt.Errorf("bring proxy up to date: %w", err)
	}
	s.ready(l)
	s.cfg.Log.Info("proxy ready", "pid", l.Hello().PID, "build", l.Hello().Build)
	return nil
}

func (s *Supervisor) drop(l *Link) {
	l.release()
	l.Close()
	s.cfg.Detach(l)
}

// stranger is what to do about a proxy that speaks another version. One that others have started may be that of an agent which is
// to follow this one.
func (s *Supervisor) stranger(l *Link) error {
	if s.cfg.Binary == "" {
		return fmt.Errorf("the proxy (build %s) speaks link version %d, this agent speaks %d: waiting for the proxy of this agent's pod",
			l.Hello().Build, l.Hello().Version, node.Version)
	}
	return s.retire(l)
}

// stay keeps a link that is ready until it ends, or next is to take its place. A proxy whose loops hang leaves its link open and its
// pods waiting: it is asked, every so often, what all its loops must answer.
func (s *Supervisor) stay(l *Link) (next *Link, err error) {
	tick := time.NewTicker(s.cfg.ProbeEvery)
	defer tick.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var passed os.FileInfo // the socket of a proxy that is not to be had
	for {
		select {
		case <-l.Done():
			return nil, nil
		case <-look.C:
			if next, passed = s.another(l, passed); next != nil {
				return next, nil
			}
			continue
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), s.cfg.HelloTimeout)
		_, err := l.Stats(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("probe proxy (pid %d): %w within %v", l.Hello().PID, errHung, s.cfg.HelloTimeout)
		}
		s.answered = s.answered || err == nil
	}
}

// another is the proxy that has taken the socket from that of l, if there is one that answers and speaks this agent's version.
func (s *Supervisor) another(l *Link, passed os.FileInfo) (*Link, os.FileInfo) {
	if s.cfg.Binary != "" {
		return nil, nil // this agent starts proxies, and ends them
	}
	at, err := os.Stat(Socket(s.cfg.RunDir))
	if err != nil || os.SameFile(at, l.at) || os.SameFile(at, passed) {
		return nil, passed
	}
	next, err := connect(Socket(s.cfg.RunDir), s.cfg.HelloTimeout)
	if err != nil {
		return nil, passed // it may just begin, or end
	}
	if v := next.Hello().Version; v != node.Version {
		s.cfg.Log.Warn("another proxy has taken the socket, and speaks another version; staying with the one before", "build", next.Hello().Build, "version", v)
		next.Close()
		return nil, at
	}
	return next, nil
}

// find dials the proxy; where there is none, it starts one.
func (s *Supervisor) find() (*Link, error) {
	l, err := connect(Socket(s.cfg.RunDir), s.cfg.HelloTimeout)
	if err == nil || !absent(err) {
		return l, err
	}
	if s.cfg.Binary == "" {
		return nil, fmt.Errorf("no proxy serves %s yet; its container starts it: %w", Socket(s.cfg.RunDir), err)
	}
	pid, exited, err := start(s.cfg.Binary, s.cfg.RunDir, s.cfg.Cgroup)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.starts++
	s.exited = exited
	s.mu.Unlock()
	s.cfg.Log.Info("proxy started", "pid", pid, "binary", s.cfg.Binary)
	l, err = connect(Socket(s.cfg.RunDir), s.cfg.HelloTimeout)
	if err != nil {
		select {
		case <-exited:
			return nil, fmt.Errorf("the proxy ended right after its start: see %s/%s: %w", s.cfg.RunDir, logName, err)
		case <-time.After(endNoticed):
		}
	}
	return l, err
}

// absent tells that nobody listens at the socket.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// retire leaves a proxy of another version to its connections: the next one gets a new socket, and its listeners take
// the new connections.
func (s *Supervisor) retire(l *Link) error {
	err := fmt.Errorf("the running proxy (pid %d, build %s) speaks link version %d, this agent speaks %d: it is left to finish its connections, and a new one is started",
		l.Hello().PID, l.Hello().Build, l.Hello().Version, node.Version)
	if e := os.Remove(Socket(s.cfg.RunDir)); e != nil {
		return fmt.Errorf("%w: %w", err, e)
	}
	ctx, cancel := context.WithTimeout(context.Background(), CallTimeout)
	defer cancel()
	// A proxy that does not understand this is the operator's to end; the message names its pid.
	if _, e := l.Call(ctx, &node.Message{Shutdown: &node.Shutdown{GraceSeconds: int(retireGrace / time.Second)}}); e != nil {
		s.cfg.Log.Warn("old proxy did not take the request to finish", "pid", l.Hello().PID, "error", e)
	}
	return err
}
