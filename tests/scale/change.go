package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	agentview "conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/mesh"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// changes has endpoints change.
func (r *run) changes(ctx context.Context) error {
	watching, end := context.WithCancel(ctx)
	defer end()
	if err := r.fleet.watch(watching, r.site); err != nil {
		return err
	}
	loadavg, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	if _, err := fmt.Sscan(string(loadavg), &r.out.Crowd); err != nil {
		return err
	}
	r.out.Rate = r.rate
	before, err := r.cpus()
	if err != nil {
		return err
	}
	busy, idle := r.fleet.heard()
	began := time.Now()
	going, stop := context.WithTimeout(ctx, r.change)
	defer stop()
	past, err := r.fleet.change(going, r.site, r.rate)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := r.cpus()
	if err != nil {
		return err
	}
	c := &r.out.Change
	c.read(past)
	b, i := r.fleet.heard()
	c.Bytes, c.IdleBytes = float64(b-busy)/float64(max(1, c.Heard)), i-idle
	for n := range r.town.nodes {
		if r.town.idle(n) {
			c.IdleAgents++
		}
	}
	n := float64(max(1, c.Changes))
	all := takenOf(after.minus(before))
	c.CPU = taken{max(0, all.Controller-r.out.RestCPU/100*took.Seconds()) / n, all.API / n, all.Agents / n}
	u, err := usageOf(r.site.apiPid())
	r.out.APIServerPeak = u.peak
	return err
}

// read takes in what became of changes.
func (c *change) read(past []*flip) {
	var watch, agents, above []time.Duration
	for _, p := range past {
		c.Changes++
		c.Lost += len(p.waiting)
		if p.done.IsZero() || p.watched.IsZero() {
			c.Lost++
			continue
		}
		watch = append(watch, p.watched.Sub(p.done))
		for _, at := range p.came {
			agents, above = append(agents, at.Sub(p.done)), append(above, at.Sub(p.watched))
		}
	}
	c.Heard, c.Watch, c.Agents, c.Above = len(agents), spreadOf(watch), spreadOf(agents), spreadOf(above)
}

// restart ends the controller and starts it anew.
func (r *run) restart(ctx context.Context) (err error) {
	if r.before, err = r.site.asked(ctx); err != nil {
		return err
	}
	r.back = r.fleet.expect(complete(r.fleet.agents[0].dir.Status().Epoch))
	began := time.Now()
	r.ctl.stop()
	r.out.Herd.Drain = time.Since(began).Seconds()
	r.weigh()
	return r.ctl.start(ctx)
}

// herd waits until all agents have come back to a controller that was started anew. Endpoints change meanwhile.
func (r *run) herd(ctx context.Context) error {
	h, ready := &r.out.Herd, r.ctl.ready
	h.Ready = ready.Sub(r.ctl.began).Seconds()
	watching, end := context.WithCancel(ctx)
	defer end()
	if err := r.fleet.watch(watching, r.site); err != nil {
		return err
	}
	before, err := r.cpus()
	if err != nil {
		return err
	}
	going, stop := context.WithCancel(ctx)
	defer stop()
	var past []*flip
	over := make(chan error, 1)
	go func() {
		var err error
		past, err = r.fleet.change(going, r.site, r.rate)
		over <- err
	}()
	came, err := r.back.await(ctx, r.fleet, r.town.nodes)
	after, aerr := r.cpus()
	_ = pause(ctx, time.Second) // the last to come hears of changes, too
	stop()
	if err := errors.Join(err, aerr, <-over); err != nil {
		return err
	}
	u, err := r.ctl.usage()
	if err != nil {
		return err
	}
	var took []time.Duration
	for _, a := range came {
		took = append(took, a.at.Sub(ready))
	}
	var c change
	c.read(past)
	text, err := r.ctl.metrics()
	if err != nil {
		return err
	}
	before.controller = 0
	h.Served, h.CPU, h.Peak, h.Deferred = spreadOf(took), takenOf(after.minus(before)), u.peak, int(text["conduit_discovery_deferred_total"])
	h.Watch, h.Change, h.Lost = c.Watch, c.Agents, c.Lost
	if err := pause(ctx, r.rest); err != nil { // the leader has heard all reports by then
		return err
	}
	then, err := r.site.asked(ctx)
	h.Writes = then.conditions - r.before.conditions
	return err
}

// heap is how many bytes of this process are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what has finalizers goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// weigh finds out what an agent's directory holds: what there is on the heap for it while it has no connection.
func (r *run) weigh() {
	h, n := &r.out.Held, int64(len(r.fleet.agents))
	for _, a := range r.fleet.agents {
		v := a.dir.View()
		h.Services, h.Workloads = h.Services+int64(len(v.Services)), h.Workloads+int64(len(v.Workloads))
		for i := range v.Services {
			for j := range v.Services[i].Ports {
				h.Endpoints += int64(len(v.Services[i].Ports[j].Endpoints))
			}
		}
	}
	h.Services, h.Workloads, h.Endpoints, h.Bytes = h.Services/n, h.Workloads/n, h.Endpoints/n, (heap()-r.bare)/n
}

// policy makes all pods STRICT, of which every agent hears.
func (r *run) policy(ctx context.Context) error {
	p := &r.out.Policy
	e := r.fleet.expect(func(_ *agent, v *agentview.View) bool {
		for i := range v.Workloads {
			if v.Workloads[i].Mode != mesh.Strict {
				return false
			}
		}
		return true
	})
	busy, idle := r.fleet.heard()
	before, err := r.ctl.usage()
	if err != nil {
		return err
	}
	_, err = r.site.dynamic.Resource(schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: "meshpolicies"}).Create(ctx,
		&unstructured.Unstructured{Object: map[string]any{"apiVersion": v1alpha1.Group + "/" + v1alpha1.Version, "kind": "MeshPolicy",
			"metadata": map[string]any{"name": v1alpha1.MeshPolicyName}, "spec": map[string]any{"mtls": map[string]any{"mode": string(mesh.Strict)}}}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	answered := time.Now()
	came, err := e.await(ctx, r.fleet, r.town.nodes)
	if err != nil {
		return err
	}
	var took []time.Duration
	for _, a := range came {
		took = append(took, a.at.Sub(answered))
	}
	after, err := r.ctl.usage()
	b, i := r.fleet.heard()
	p.Heard, p.CPU, p.Bytes = spreadOf(took), (after.cpu - before.cpu).Seconds(), float64(b+i-busy-idle)/float64(r.town.nodes)
	return err
}
