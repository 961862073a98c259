package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"conduit.io/conduit/agent/controlplane"
	agentview "conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/identity/remote"
	"conduit.io/conduit/mesh"
)

// agent is what of a node's agent speaks with the controller: the product's own code, with a connection of its own.
type agent struct {
	fleet  *fleet
	number int
	dials  map[int]bool
	config controlplane.Config
	dir    *controlplane.Directory
	issuer *remote.Issuer
	began  time.Time
	told   atomic.Int64 // bytes of discovery's messages, as they come: compressed, with gRPC's frames
	served atomic.Pointer[expectation]
}

// fleet are the agents of all nodes.
type fleet struct {
	town   town
	agents []*agent

	working  sync.WaitGroup
	end      context.CancelFunc
	expected atomic.Pointer[expectation]
	flips    flips
}

// expectation is something that every agent is expected to hold. Those that do are told of once.
type expectation struct {
	holds func(a *agent, v *agentview.View) bool
	came  chan arrival
}

type arrival struct {
	agent *agent
	at    time.Time
}

func newFleet(t town, s *site, addr, roots string) *fleet {
	f := &fleet{town: t, flips: flips{pending: map[int]*flip{}, flipped: map[int]bool{}}}
	for n := range t.nodes {
		a := &agent{fleet: f, number: n, dials: map[int]bool{}}
		url := "https://" + addr
		a.issuer = remote.New(remote.Config{URL: url, TokenFile: s.tokenFile(n), RootsFile: roots,
			Controller: mesh.Identity{TrustDomain: "cluster.local", Namespace: deploy.Namespace, ServiceAccount: deploy.Controller}})
		client := &http.Client{Transport: &counted{a.issuer.HTTPClient().Transport, &a.told}}
		a.config = controlplane.Config{URL: url, Client: client, Node: nodeName(n), Log: slog.New(slog.DiscardHandler)}
		a.dir = controlplane.New(a.config)
		var own []netip.Addr
		var others []netip.AddrPort // as a whole
		for _, p := range t.podsOn(n) {
			own = append(own, podAddr(p))
		}
		for _, s := range t.dials(n) {
			a.dials[s] = true
			others = append(others, netip.AddrPortFrom(serviceAddr(s), 0))
		}
		for _, p := range t.callers(n) {
			others = append(others, netip.AddrPortFrom(podAddr(p), 0))
		}
		a.dir.Local(own)
		a.dir.Lookup(&node.Lookup{Add: others})
		f.agents = append(f.agents, a)
	}
	return f
}

// start has some of the agents begin. They go on until stop.
func (f *fleet) start(ctx context.Context, agents []*agent) {
	for _, a := range agents {
		a.began = time.Now()
		f.working.Go(func() { a.dir.Run(ctx, a.changed) })
		f.working.Go(func() { a.issuer.Watch(ctx, func([]byte) {}, func(error) {}) })
	}
}

// run is a context in which agents run, until stop.
func (f *fleet) run() context.Context {
	ctx, end := context.WithCancel(context.Background())
	f.end = end
	return ctx
}

func (f *fleet) stop() {
	if f.end != nil {
		f.end()
		f.working.Wait()
	}
}

// changed is called by the directory.
func (a *agent) changed() {
	now := time.Now()
	f := a.fleet
	if e := f.expected.Load(); e != nil && a.served.Load() != e && e.holds(a, a.dir.View()) && a.served.Swap(e) != e {
		e.came <- arrival{a, now}
	}
	if f.flips.open.Load() > 0 {
		f.flips.note(a, a.dir.View(), now)
	}
}

// expect begins an expectation of all agents.
func (f *fleet) expect(holds func(a *agent, v *agentview.View) bool) *expectation {
	e := &expectation{holds: holds, came: make(chan arrival, len(f.agents))}
	f.expected.Store(e)
	return e
}

// await waits until n more agents hold what is expected.
func (e *expectation) await(ctx context.Context, f *fleet, n int) ([]arrival, error) {
	var out []arrival
	for len(out) < n {
		select {
		case a := <-e.came:
			out = append(out, a)
		case <-ctx.Done():
			return out, fmt.Errorf("%d of %d agents hold what they should: %w; one of the others: %v", len(out), n, ctx.Err(), f.behind(e))
		}
	}
	return out, nil
}

// behind is how an agent stands that does not hold what is expected.
func (f *fleet) behind(e *expectation) any {
	for _, a := range f.agents {
		if a.served.Load() != e {
			v := a.dir.View()
			return fmt.Sprintf("%d %+v: %d workloads, %d services, %d of nobody", a.number, a.dir.Status(), len(v.Workloads), len(v.Services), len(v.Nobody))
		}
	}
	return nil
}

// complete is the expectation that an agent has all it asks for, of another epoch than one before.
func complete(before string) func(a *agent, v *agentview.View) bool {
	return func(a *agent, v *agentview.View) bool {
		st := a.dir.Status()
		if !st.Connected || st.Version == 0 || st.Epoch == before || len(v.Nobody) > 0 {
			return false
		}
		found := 0
		for i := range v.Services {
			if s := &v.Services[i]; len(s.Addrs) > 0 && len(s.Ports) == 1 && len(s.Ports[0].Endpoints) >= podsPerService-1 {
				found++
			}
		}
		return found == len(a.dials) && len(v.Workloads) >= podsPerNode
	}
}

// heard is how many bytes the agents were sent, by whether they dial what changes.
func (f *fleet) heard() (busy, idle int64) {
	for _, a := range f.agents {
		if f.town.idle(a.number) {
			idle += a.told.Load()
		} else {
			busy += a.told.Load()
		}
	}
	return busy, idle
}

// counted counts the bytes that a discovery stream brings.
type counted struct {
	http.RoundTripper
	n *atomic.Int64
}

func (c *counted) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := c.RoundTripper.RoundTrip(r)
	if err == nil && r.URL.Path == discoveryv1connect.DiscoveryServiceWatchProcedure {
		res.Body = &countedBody{res.Body, c.n}
	}
	return res, err
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}
