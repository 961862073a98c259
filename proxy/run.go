// Package proxy is the program conduit-proxy: the data plane of one node, or with --static a plain reverse proxy.
package proxy

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"conduit.io/conduit/proxy/link"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/node"
	"conduit.io/conduit/proxy/sock"
	"conduit.io/conduit/proxy/static"
)

// The exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 64 // sysexits.h, EX_USAGE: bad arguments or a bad configuration
)

// descriptors is for how many there is room from the start: 5 for each pod, and one for each connection. In the kernel it is 128 KB.
const descriptors = 1 << 14

const usage = `conduit-proxy carries the traffic of one node's enrolled pods.

  conduit-proxy --link PATH          serve an agent over a Unix socket made at PATH
  conduit-proxy --link-fd N          the same over a listening socket that was inherited as descriptor N
  conduit-proxy --static FILE.json   a plain reverse proxy, without agent and pods

  --shards N          loops to spread pods over (default 1)
  --grace DURATION    how long connections may go on after SIGTERM (default 10s)
  --follow-grace DURATION   the same where another proxy has taken the pods over (default 60s)
  --same-node direct|link   how pods of this node reach each other: in one hop, or by mTLS, as between nodes, so that what filters
                            packets by pods' addresses sees theirs (default direct)
  --log-level LEVEL   debug, info, warn or error (default info)
  --version           print the version
`

// Env is what a process has; tests supply their own.
type Env struct {
	Args    []string // without the program's name
	Stdout  io.Writer
	Stderr  io.Writer
	Version string
	Signals <-chan os.Signal // SIGTERM, SIGINT; nil: the process's own
}

type options struct {
	linkPath string
	linkFD   int
	static   string
	shards   int
	grace    time.Duration
	follow   time.Duration
	sameNode string
	level    slog.Level
	version  bool
}

// Run is the program; it returns the exit code.
func Run(e Env) int {
	o, err := parse(e)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(e.Stdout, usage)
		return exitOK
	case err != nil:
		fmt.Fprintf(e.Stderr, "conduit-proxy: %v\nRun conduit-proxy --help for its options.\n", err)
		return exitUsage
	case o.version:
		fmt.Fprintf(e.Stdout, "conduit-proxy %s\n", e.Version)
		return exitOK
	}
	log := slog.New(slog.NewTextHandler(e.Stderr, &slog.HandlerOptions{Level: o.level}))
	if e.Signals == nil {
		c := make(chan os.Signal, 2)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
		e.Signals = c
	}
	signal.Ignore(syscall.SIGPIPE)
	limitMemory(o.shards)
	if err := run(e, o, log); err != nil {
		fmt.Fprintf(e.Stderr, "conduit-proxy: %v\n", err)
		if usage := (usageError{}); errors.Is(err, static.ErrConfig) || errors.As(err, &usage) {
			return exitUsage
		}
		return exitError
	}
	return exitOK
}

// usageError is the caller's mistake.
type usageError struct{ error }

func parse(e Env) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("conduit-proxy", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.linkPath, "link", "", "")
	f.IntVar(&o.linkFD, "link-fd", -1, "")
	f.StringVar(&o.static, "static", "", "")
	f.IntVar(&o.shards, "shards", 1, "")
	f.DurationVar(&o.grace, "grace", 10*time.Second, "")
	f.DurationVar(&o.follow, "follow-grace", time.Minute, "")
	f.StringVar(&o.sameNode, "same-node", "direct", "")
	f.TextVar(&o.level, "log-level", slog.LevelInfo, "")
	f.BoolVar(&o.version, "version", false, "")
	if err := f.Parse(e.Args); err != nil {
		return nil, err
	}
	modes := 0
	for _, set := range []bool{o.linkPath != "", o.linkFD >= 0, o.static != ""} {
		if set {
			modes++
		}
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.version:
	case modes != 1:
		return nil, errors.New("give one of --link, --link-fd and --static")
	case o.shards < 1 || o.shards > 64:
		return nil, fmt.Errorf("--shards %d is not within 1 to 64", o.shards)
	case o.sameNode != "direct" && o.sameNode != "link":
		return nil, fmt.Errorf("--same-node %q is neither direct nor link", o.sameNode)
	case o.grace < 0 || o.follow < 0:
		return nil, fmt.Errorf("--grace %s or --follow-grace %s is negative", o.grace, o.follow)
	}
	return o, nil
}

// limitMemory keeps the process small: one processor more than there are loops, for handshakes and the rest, and a
// collector that starts at 1 MiB of heap (4 MiB times the percentage) instead of 4: hardly anything is allocated per
// request, so it still runs seldom.
func limitMemory(shards int) {
	// Not more than the machine has: while the collector runs, two threads on one core wait for each other.
	runtime.GOMAXPROCS(min(runtime.NumCPU(), shards+1))
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(512 << 20)
	}
}

func run(e Env, o *options, log *slog.Logger) error {
	var cfg *static.Config
	if o.static != "" {
		c, err := static.Load(o.static)
		if err != nil {
			return err
		}
		cfg, o.shards = c, 1
	}
	if err := sock.GrowTable(descriptors); err != nil {
		log.Warn("connections may be held up for moments while there come to be more of them", "error", err)
	}
	loops, stop, err := startLoops(o.shards)
	if err != nil {
		return err
	}
	defer stop()
	trim(loops[0])
	if cfg != nil {
		return runStatic(e, o, cfg, loops[0], log)
	}
	return runNode(e, o, loops, log)
}

// startLoops runs n loops; stop ends them and waits.
func startLoops(n int) (loops []*loop.Loop, stop func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	stop = func() { cancel(); wg.Wait() }
	for range n {
		l, err := loop.New()
		if err != nil {
			stop()
			return nil, nil, err
		}
		l.KeepProcessor()
		wg.Go(func() { l.Run(ctx) })
		loops = append(loops, l)
	}
	return loops, stop, nil
}

func runNode(e Env, o *options, loops []*loop.Loop, log *slog.Logger) error {
	at, err := openLink(o)
	if err != nil {
		return err
	}
	watching, stop := context.WithCancel(context.Background())
	defer stop()
	go endWhenHung(watching, loops, log)
	n := node.New(node.Options{Loops: loops, Log: log, Build: e.Version, LinkSameNode: o.sameNode == "link"})
	ended := make(chan time.Duration, 1)
	srv := link.New(at, n, log, func(grace time.Duration) {
		select {
		case ended <- grace:
		default:
		}
	})
	served := make(chan error, 1)
	go func() { served <- srv.Serve() }()
	go func() {
		<-at.Past()
		log.Info("another proxy has the pods; connections are led there")
		n.Usher()
	}()
	log.Info("proxy started", "version", e.Version, "pid", os.Getpid())
	select {
	case grace := <-ended:
		log.Info("proxy is leaving", "grace", grace)
		within(e.Signals, func() { n.Shutdown(grace) })
		srv.Close()
	case <-e.Signals:
		srv.Close() // the agent is to look for another proxy, for which there is time
		within(e.Signals, func() { giveWay(o, at, n, log) })
	case err := <-served:
		return err
	}
	return nil
}

// giveWay ends n. Without a proxy that follows, pods that are closed can open no connection until it has ended: then it does not wait
// for long.
func giveWay(o *options, at *link.Socket, n *node.Node, log *slog.Logger) {
	if n.Busy() {
		log.Info("proxy is leaving; another one may take over", "for", link.HandOver)
		time.Sleep(link.HandOver)
	}
	grace := o.grace
	if at.Followed() {
		grace = max(grace, o.follow)
	}
	log.Info("proxy accepts no more", "followed", at.Followed(), "grace", grace)
	n.Shutdown(grace)
}

// within runs f to its end, or until a second signal.
func within(signals <-chan os.Signal, f func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-signals:
	}
}

func openLink(o *options) (*link.Socket, error) {
	if o.linkFD >= 0 {
		l, err := link.FromFile(os.NewFile(uintptr(o.linkFD), "link"))
		if err != nil {
			return nil, usageError{fmt.Errorf("--link-fd %d: %w", o.linkFD, err)}
		}
		return l, nil
	}
	return link.Listen(o.linkPath)
}
