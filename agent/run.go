package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"conduit.io/conduit/agent/admin"
	"conduit.io/conduit/agent/cnicache"
	"conduit.io/conduit/agent/cniserver"
	"conduit.io/conduit/agent/controlplane"
	"conduit.io/conduit/agent/enrol"
	"conduit.io/conduit/agent/kubelet"
	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/loader"
	"conduit.io/conduit/mesh"
)

const (
	cniSocket = "cni.sock"
	podsDir   = "pods"
	defaultCA = "ca"
)

// Main runs conduit-agent, and returns its exit code.
func Main(env Env) int {
	c, code, ok := parse(env)
	if !ok {
		return code
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	var err error
	switch {
	case c.version:
		_, err = fmt.Fprintln(env.Stdout, "conduit-agent", mesh.Version())
	case c.uninstall:
		err = uninstall(c, env.Stdout)
	default:
		log := slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: c.logLevel}))
		quieten(log)
		err = run(ctx, c, log)
	}
	if err != nil {
		fmt.Fprintf(env.Stderr, "conduit-agent: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// run is the daemon's life, until ctx ends.
func run(ctx context.Context, c config, log *slog.Logger) error {
	if err := loader.Require(); err != nil {
		return err
	}
	if c.ownProxy {
		if _, err := os.Stat(c.proxy); err != nil {
			return fmt.Errorf("find the proxy: %w (name it with --proxy PATH)", err)
		}
	}
	w, err := open(c, log)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.runDir, 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	if c.ownProxy {
		l, pid, err := acquire(c.runDir)
		if errors.Is(err, errRunning) {
			return fmt.Errorf("%w in %s: pid %d; end it first ('kill %d'), or use another --run-dir and --bpffs", err, c.runDir, pid, pid)
		}
		if err != nil {
			return err
		}
		defer l.release(false)
		return live(ctx, c, log, w)
	}
	return succeed(ctx, c, log, w)
}

// errAsked ends the life of an agent that is asked for the run directory.
var errAsked = errors.New("another agent asks for the run directory")

// succeed takes the run directory over from another agent, if there is one, and lives until another one does so, or ctx ends. Then
// it waits: if that one ends first, it is needed again.
func succeed(ctx context.Context, c config, log *slog.Logger, w *surroundings) error {
	for ask := true; ; ask = false {
		l, err := take(ctx, c.runDir, ask)
		if err != nil {
			return unlessEnded(ctx, err)
		}
		life, end := context.WithCancelCause(ctx)
		go func() {
			if err := asked(life, c.runDir); err == nil {
				end(errAsked)
			} else if life.Err() == nil {
				end(err)
			}
		}()
		err = live(life, c, log, w)
		given := errors.Is(context.Cause(life), errAsked)
		end(nil)
		l.release(false)
		if !given || ctx.Err() != nil {
			return err
		}
		log.Info("another agent has taken over; waiting, in case it ends")
		if w, err = open(c, log); err != nil {
			return err
		}
	}
}

func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// live is an agent's life with the run directory, until ctx ends.
func live(ctx context.Context, c config, log *slog.Logger, w *surroundings) error {
	attachments, err := store.Open(filepath.Join(c.runDir, podsDir))
	if err != nil {
		return err
	}
	datapath, err := loader.Open(loader.Config{BPFFS: c.bpffs, Cgroup: c.cgroup, Log: log})
	if err != nil {
		return err
	}
	defer datapath.Close()
	parts := enrol.Config{
		Node: c.node, TrustDomain: c.trustDomain, Datapath: datapath, Objects: w.objects,
		Store: attachments, Keeper: identity.NewKeeper(w.issuer, nil), Log: log,
	}
	if w.directory != nil {
		parts.Directory = w.directory
	}
	if c.cniCache != "" {
		parts.Records = func() ([]cnicache.Record, error) { return cnicache.Read(c.cniCache) }
	}
	return serve(ctx, c, log, w, parts)
}

// serve takes up the node's pods, and runs every part of the agent until ctx ends.
func serve(ctx context.Context, c config, log *slog.Logger, w *surroundings, parts enrol.Config) error {
	var reporter *controlplane.Reporter // nil: there is nobody to tell
	parts.Observed = func() {
		if reporter != nil {
			reporter.Kick()
		}
	}
	manager := enrol.New(parts)
	if err := manager.Restore(); err != nil {
		return err
	}
	supervisor := proxylink.New(proxylink.Config{
		RunDir: c.runDir, Binary: proxyBinary(c), Cgroup: c.cgroup, Log: log, Attach: manager.Attach, Detach: manager.Detach,
	})
	ready := readiness{manager: manager, lock: c.cniLock, trouble: func() error { _, why := supervisor.State(); return why }}
	if w.directory != nil {
		told := bypasses{path: filepath.Join(c.runDir, bypassFile), log: log}
		told.load()
		reporter = controlplane.NewReporter(w.controller, newObserver(w, ready, supervisor, told).look)
	}
	probes := kubelet.New(uint16(c.kubeletPort), parts.Datapath, log)
	adminServer, err := admin.Listen(admin.Config{
		Addr: c.admin, RunDir: c.runDir, Build: mesh.Version(), Node: c.node,
		Manager: manager, Ready: ready.noting(parts.Observed), Manifests: w, Supervisor: supervisor, Kubelet: probes, Log: log,
	})
	if err != nil {
		return err
	}
	cni, err := cniserver.Listen(filepath.Join(c.runDir, cniSocket), manager, log)
	if err != nil {
		return err
	}
	log.Info("agent started", "version", mesh.Version(), "node", c.node, "world", w.name, "admin", adminServer.Addr())
	err = together(ctx,
		func(ctx context.Context) error { supervisor.Run(ctx); return nil },
		func(ctx context.Context) error { manager.Run(ctx); return nil },
		func(ctx context.Context) error { probes.Run(ctx); return nil },
		func(ctx context.Context) error {
			parts.Keeper.Run(ctx, manager.Certified, func(err error) { log.Error("certificates not issued; trying again", "error", err) })
			return nil
		},
		func(ctx context.Context) error { return w.objects.Watch(ctx, manager.Kick) },
		func(ctx context.Context) error {
			if w.directory != nil {
				w.directory.Run(ctx, manager.Kick)
			}
			return nil
		},
		func(ctx context.Context) error {
			if reporter != nil {
				reporter.Run(ctx)
			}
			return nil
		},
		func(ctx context.Context) error { ready.watch(ctx, parts.Observed); return nil },
		adminServer.Serve,
		cni.Serve,
	)
	log.Info("agent ended; pods stay wired and the proxy goes on")
	return err
}

// together runs the parts until ctx ends or one of them fails, and waits for all.
func together(ctx context.Context, parts ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, part := range parts {
		wg.Go(func() {
			if err := part(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
