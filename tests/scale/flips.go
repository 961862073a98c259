package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	agentview "conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/mesh"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// flip is a change of one endpoint: it stops being ready, or is ready again.
type flip struct {
	want    int       // endpoints of its service that are ready then
	done    time.Time // when the API server had answered the write; zero: not yet
	watched time.Time // when a plain watch of the API server told of it; zero: not yet
	waiting map[*agent]bool
	came    []time.Time // at the agents
}

func (p *flip) over() bool { return len(p.waiting) == 0 && !p.done.IsZero() && !p.watched.IsZero() }

// flips are the changes of one run of them.
type flips struct {
	open    atomic.Int64 // how many are pending
	mu      sync.Mutex
	pending map[int]*flip // by service
	flipped map[int]bool  // services of which an endpoint is not ready
	past    []*flip
}

// note notes what an agent knows of the pending flips.
func (f *flips) note(a *agent, v *agentview.View, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s, p := range f.pending {
		if !p.waiting[a] {
			continue
		}
		i := slices.IndexFunc(v.Services, func(m mesh.Service) bool { return m.Name == serviceName(s) && len(m.Addrs) > 0 })
		if i >= 0 && len(v.Services[i].Ports[0].Endpoints) == p.want {
			delete(p.waiting, a)
			p.came = append(p.came, now)
			f.settle(s, p)
		}
	}
}

// settle is called with the lock.
func (f *flips) settle(s int, p *flip) {
	if p.over() {
		delete(f.pending, s)
		f.open.Add(-1)
		f.past = append(f.past, p)
	}
}

// flip changes an endpoint of a service, unless a change of it is under way. It is expected at the agents that dial the service and
// hold what they should by now.
func (f *fleet) flip(ctx context.Context, s *site, service int) error {
	x, e := &f.flips, f.expected.Load()
	p := &flip{waiting: map[*agent]bool{}}
	for _, a := range f.agents {
		if a.dials[service] && a.served.Load() == e {
			p.waiting[a] = true
		}
	}
	x.mu.Lock()
	if x.pending[service] != nil {
		x.mu.Unlock()
		return nil
	}
	ready := x.flipped[service]
	x.flipped[service] = !ready
	if p.want = podsPerService; !ready {
		p.want--
	}
	x.pending[service] = p
	x.open.Add(1)
	x.mu.Unlock()
	patch := fmt.Sprintf(`[{"op":"replace","path":"/endpoints/0/conditions/ready","value":%t},{"op":"replace","path":"/endpoints/0/conditions/serving","value":%[1]t}]`, ready)
	_, err := s.client.DiscoveryV1().EndpointSlices(namespaceOf(service)).Patch(ctx, serviceName(service)+"-1", types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
	now := time.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	p.done = now
	x.settle(service, p)
	return err
}

// watch notes when a plain watch tells of the flips, until ctx ends. It returns when the watch has begun.
func (f *fleet) watch(ctx context.Context, s *site) error {
	list, err := s.client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	w, err := s.client.DiscoveryV1().EndpointSlices("").Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	f.working.Go(func() {
		defer w.Stop()
		for event := range w.ResultChan() {
			if o, ok := event.Object.(*discoveryv1.EndpointSlice); ok {
				f.flips.watched(o, time.Now())
			}
		}
	})
	return nil
}

func (f *flips) watched(o *discoveryv1.EndpointSlice, now time.Time) {
	var service int
	if _, err := fmt.Sscanf(o.Name, "svc-%d-1", &service); err != nil {
		return
	}
	ready := 0
	for i := range o.Endpoints {
		if *o.Endpoints[i].Conditions.Ready {
			ready++
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.pending[service]; p != nil && p.watched.IsZero() && ready == p.want {
		p.watched = now
		f.settle(service, p)
	}
}

// patience is how long a change may take before it counts as lost.
const patience = 15 * time.Second

// change has so many endpoints change in a second, of one service after the other, until ctx ends, and returns those changes when
// all agents have heard of them, or patience is over.
func (f *fleet) change(ctx context.Context, s *site, rate float64) ([]*flip, error) {
	var (
		x       = &f.flips
		writers sync.WaitGroup
		once    sync.Once
		failed  error
	)
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	for service := 0; ctx.Err() == nil; service = (service + 1) % f.town.busy() {
		writers.Go(func() {
			if err := f.flip(context.WithoutCancel(ctx), s, service); err != nil {
				once.Do(func() { failed = err })
			}
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	writers.Wait()
	for deadline := time.Now().Add(patience); x.open.Load() > 0 && time.Now().Before(deadline); {
		<-tick.C
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	past := x.past
	for _, p := range x.pending {
		past = append(past, p)
	}
	x.open.Store(0)
	x.past = nil
	clear(x.pending)
	return past, failed
}
