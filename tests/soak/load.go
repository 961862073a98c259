package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"conduit.io/conduit/tests/load/backend"
	"conduit.io/conduit/tests/load/drive"
)

// kind is a share of the well-behaved load, of which no request may fail.
type kind struct {
	name  string
	share float64
	cfg   drive.Config
}

func kinds(r *rig) []kind {
	grpc := drive.Config{Target: r.web, Protocol: drive.GRPC, Method: "POST", Trailer: "x-trailer", Streams: 100, Body: 100}
	stream := grpc
	grpc.Path, grpc.Connections, grpc.Churn = "/soak.Echo/Unary", 5, 2
	stream.Path, stream.Connections, stream.Churn = "/stream/10/1000", 4, 0.5
	h2 := drive.Config{Target: r.web, Protocol: drive.H2C, Method: "GET", Path: "/", Connections: 5, Streams: 100, Churn: 2}
	upload := drive.Config{Target: r.web, Protocol: drive.H2C, Method: "POST", Path: "/upload", Body: 20_000, Connections: 4, Streams: 100, Churn: 1}
	h1 := drive.Config{Target: r.old, Protocol: drive.HTTP1, Method: "GET", Path: "/bytes/500", Connections: 60, Streams: 1, Churn: 10}
	return []kind{{"HTTP/2", 0.4, h2}, {"gRPC", 0.35, grpc}, {"HTTP/1.1", 0.2, h1}, {"uploads", 0.025, upload}, {"gRPC streams", 0.025, stream}}
}

// tick is how far bursts lie apart. A wake-up of four processes for each request would cost more than the requests do.
const tick = 10 * time.Millisecond

// load is all the traffic, and what has become of it until now.
type load struct {
	misuser misuser

	mu      sync.Mutex
	results map[string]drive.Result
	errs    []error
}

// run makes traffic for d, and returns when all of it has ended. Connections are churned the faster the higher the rate.
func (l *load) run(ctx context.Context, r *rig, d time.Duration, rate float64) {
	var wg sync.WaitGroup
	l.results = map[string]drive.Result{}
	for _, k := range kinds(r) {
		cfg := k.cfg
		cfg.Open, cfg.Rate, cfg.Duration, cfg.Timeout, cfg.Status, cfg.Unique = true, k.share*rate, d, limit, 200, true
		cfg.Burst = int(cfg.Rate * tick.Seconds())
		sent := cfg.Body
		if cfg.Protocol == drive.GRPC {
			sent += 5
		}
		cfg.Expect = backend.Expected(cfg.Path, cfg.Protocol == drive.GRPC, sent)
		cfg.Report = func(res *drive.Result) { l.record(k.name, res) }
		wg.Go(func() {
			res, err := drive.Run(ctx, cfg)
			if err != nil {
				l.mu.Lock()
				l.errs = append(l.errs, fmt.Errorf("%s: %w", k.name, err))
				l.mu.Unlock()
				return
			}
			l.record(k.name, res)
		})
	}
	misusing, stop := context.WithTimeout(ctx, d)
	defer stop()
	wg.Go(func() { l.misuser.run(misusing, r, max(1, rate/50)) })
	wg.Wait()
}

func (l *load) record(name string, res *drive.Result) {
	c := *res
	c.Failures = maps.Clone(res.Failures)
	l.mu.Lock()
	l.results[name] = c
	l.mu.Unlock()
}

// total adds up what has become of the load.
func (l *load) total() drive.Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := drive.Result{Failures: map[string]uint64{}}
	for name, r := range l.results {
		for reason, n := range r.Failures {
			t.Failures[name+": "+reason] = n
		}
		t.Sent += r.Sent
		t.Completed += r.Completed
		t.Failed += r.Failed
		t.Late += r.Late
	}
	return t
}

// unsent is what drive says of requests that no connection took within the time limit. A share of them is forgiven: a
// machine that has other work for a while cannot carry an open loop, and a proxy that loses a connection or a request
// shows in other reasons.
const (
	unsent   = "unsent"
	forgiven = 0.05
)

// faults are the failures that the load did not itself cause.
func (l *load) faults() (out []string) {
	l.mu.Lock()
	for _, name := range slices.Sorted(maps.Keys(l.results)) {
		r := l.results[name]
		for _, reason := range slices.Sorted(maps.Keys(r.Failures)) {
			if reason == unsent && float64(r.Failures[reason]) <= forgiven*float64(r.Sent) {
				continue
			}
			out = append(out, fmt.Sprintf("%s: %d of %d requests failed: %s", name, r.Failures[reason], r.Sent, reason))
		}
		if r.Completed == 0 {
			out = append(out, name+": no request completed")
		}
	}
	for _, err := range l.errs {
		out = append(out, err.Error())
	}
	l.mu.Unlock()
	l.misuser.mu.Lock()
	defer l.misuser.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(l.misuser.faults)) {
		out = append(out, fmt.Sprintf("%s (%d times)", what, l.misuser.faults[what]))
	}
	return out
}
