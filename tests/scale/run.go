package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// plan says what is measured, and for how long.
type plan struct {
	controller string        // the program
	profile    string        // directory for profiles, of a controller that this program runs instead; empty: none
	writers    int           // requests at a time while the cluster is made
	rate       float64       // changes of endpoints a second
	change     time.Duration // how long they go on
	rest       time.Duration // how long nothing happens, to see what that costs
	limit      time.Duration // of one step
	progress   io.Writer
}

// run is the measurement of one size.
type run struct {
	plan
	town  town
	site  *site
	ctl   *controller
	fleet *fleet
	uids  []types.UID
	begun time.Time
	out   point

	running context.Context // of the agents
	bare    int64           // the heap before there were agents
	before  asked           // before the controller was started anew
	back    *expectation    // that agents have come back to it
}

// measure measures one size.
func measure(ctx context.Context, p plan, nodes int) (*point, error) {
	dir, err := os.MkdirTemp("", "conduit-scale-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	r := &run{plan: p, town: town{nodes}, begun: time.Now()}
	r.out = point{When: time.Now().UTC().Format(time.RFC3339), Nodes: nodes, Pods: r.town.pods(), Services: r.town.services()}
	r.say("starting etcd and kube-apiserver")
	if r.site, err = openSite(ctx, dir); err != nil {
		return nil, err
	}
	defer r.site.close()
	defer func() {
		if r.ctl != nil {
			r.ctl.stop()
		}
	}()
	defer func() {
		if r.fleet != nil {
			r.fleet.stop()
		}
	}()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"cluster", r.populate}, {"start", r.load}, {"connect", r.connect}, {"enrol", r.enrol}, {"rest", r.atRest},
		{"change", r.changes}, {"restart", r.restart}, {"herd", r.herd}, {"policy", r.policy},
	} {
		r.say(step.name)
		limit, cancel := context.WithTimeout(ctx, p.limit)
		err := r.profiling(step.name, func() error { return step.do(limit) })
		cancel()
		if err != nil {
			return nil, fmt.Errorf("%d nodes, %s: %w", nodes, step.name, err)
		}
	}
	return &r.out, nil
}

func (r *run) say(what string) {
	fmt.Fprintf(r.progress, "%6.1fs  %d nodes: %s\n", time.Since(r.begun).Seconds(), r.town.nodes, what)
}

func (r *run) populate(ctx context.Context) (err error) {
	began := time.Now()
	r.uids, r.out.Written, err = r.site.populate(ctx, r.town, r.writers)
	r.out.WrittenRate = float64(r.out.Written) / time.Since(began).Seconds()
	return err
}

// load starts the controller before a cluster that is there already, a second time: the first one makes the issuer.
func (r *run) load(ctx context.Context) error {
	config, err := r.site.kubeconfig(ctx)
	if err != nil {
		return err
	}
	if r.ctl, err = newController(r.controller, r.profile != "", r.site.dir, config); err != nil {
		return err
	}
	if err := r.ctl.start(ctx); err != nil {
		return err
	}
	r.ctl.stop()
	if err := r.ctl.start(ctx); err != nil {
		return err
	}
	r.out.Load.Ready = r.ctl.ready.Sub(r.ctl.began).Seconds()
	u, err := r.ctl.usage()
	if err != nil {
		return err
	}
	r.out.Load.CPU, r.out.Load.Peak = u.cpu.Seconds(), u.peak
	r.out.AloneCPU, r.out.Alone, err = r.quiet(ctx)
	return err
}

// quiet is what the controller takes when nothing happens.
func (r *run) quiet(ctx context.Context) (percent float64, m memory, err error) {
	before, err := r.ctl.usage()
	if err != nil {
		return 0, m, err
	}
	if err := pause(ctx, r.rest); err != nil {
		return 0, m, err
	}
	after, err := r.ctl.usage()
	if err != nil {
		return 0, m, err
	}
	text, err := r.ctl.metrics()
	return percentOf(before.cpu, after.cpu, r.rest), memory{after.rss, after.anon, int64(text["go_memstats_heap_alloc_bytes"])}, err
}

func percentOf(before, after, time time.Duration) float64 {
	return 100 * float64(after-before) / float64(time)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect has one agent come, and then all others at once.
func (r *run) connect(ctx context.Context) error {
	roots, err := r.site.roots(ctx)
	if err != nil {
		return err
	}
	r.bare = heap()
	r.fleet = newFleet(r.town, r.site, r.ctl.addr, roots)
	r.running = r.fleet.run()
	e := r.fleet.expect(complete(""))
	first := r.fleet.agents[:1]
	r.fleet.start(r.running, first)
	came, err := e.await(ctx, r.fleet, 1)
	if err != nil {
		return err
	}
	r.out.First = float64(came[0].at.Sub(first[0].began).Microseconds()) / 1000
	r.out.Together.Bytes = first[0].told.Load()
	if err := forgetPeak(r.ctl.cmd.Process.Pid); err != nil {
		return err
	}
	before, err := r.cpus()
	if err != nil {
		return err
	}
	r.fleet.start(r.running, r.fleet.agents[1:])
	if came, err = e.await(ctx, r.fleet, r.town.nodes-1); err != nil {
		return err
	}
	after, err := r.cpus()
	if err != nil {
		return err
	}
	var took []time.Duration
	for _, a := range came {
		took = append(took, a.at.Sub(a.agent.began))
	}
	u, err := r.ctl.usage()
	if err != nil {
		return err
	}
	text, err := r.ctl.metrics()
	c := &r.out.Together
	c.Snapshot, c.CPU, c.Peak, c.Deferred = spreadOf(took), takenOf(after.minus(before)), u.peak, int(text["conduit_discovery_deferred_total"])
	return err
}

func (r *run) atRest(ctx context.Context) (err error) {
	if err := pause(ctx, 2*time.Second); err != nil { // what came with the connections is over
		return err
	}
	busy, idle := r.fleet.heard()
	r.out.RestCPU, r.out.Rest, err = r.quiet(ctx)
	b, i := r.fleet.heard()
	r.out.RestBytes = float64(b+i-busy-idle) / r.rest.Seconds() / float64(r.town.nodes)
	return err
}
