// Command soak keeps two proxies that speak mutual TLS to each other under load for a long time, with clients that reset,
// give up, abort, half-close and vanish, and fails when anything grew, was not given back, or failed without reason.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const about = `usage: soak --proxy FILE [flags]

Starts two 'conduit-proxy --static' with mutual TLS between them, a backend, and a mix of HTTP/2, HTTP/1.1, gRPC and TCP;
connections come and go, and for every 50 good requests a client misbehaves. Exit status: 0 when nothing grew and nothing
failed, 1 with what did, 64 usage.

`

type options struct {
	proxy, out string
	time       time.Duration
	rate       float64
	every      time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(64)
	}
	faults, err := soak(ctx, o, os.Stdout)
	if err != nil {
		faults = append(faults, err.Error())
	}
	for _, f := range faults {
		fmt.Println("FAIL", f)
	}
	if len(faults) > 0 {
		os.Exit(1)
	}
	fmt.Println("PASS")
}

func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.proxy, "proxy", "", "the conduit-proxy to test, a `file`")
	f.StringVar(&o.out, "out", "bench/out/soak.jsonl", "`file` for the samples, a line of JSON each")
	f.DurationVar(&o.time, "for", 2*time.Minute, "`time` under load")
	f.Float64Var(&o.rate, "rate", 5000, "well-behaved requests a `second`")
	f.DurationVar(&o.every, "every", 0, "`time` between samples (default 10s, or a 40th of the time under load if that is less)")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, about)
		f.SetOutput(stdout)
		f.PrintDefaults()
		return nil, err
	} else if err != nil {
		return nil, err
	}
	if o.every == 0 {
		o.every = min(10*time.Second, o.time/40)
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.proxy == "":
		return nil, errors.New("--proxy is missing")
	case o.time < 10*time.Second:
		return nil, fmt.Errorf("--for %v: less than 10s shows nothing", o.time)
	case o.rate < 100 || o.rate > 100_000:
		return nil, fmt.Errorf("--rate %v is not within 100 to 100000", o.rate)
	case o.every < 50*time.Millisecond || o.every > o.time/(2*minPoints):
		return nil, fmt.Errorf("--every %v is not within 50ms and a %dth of --for", o.every, 2*minPoints)
	}
	return o, nil
}

// run is a soak that goes on.
type run struct {
	rig     rig
	load    load
	o       *options
	stdout  io.Writer
	file    *os.File
	begin   time.Time
	samples []sample
	said    time.Time
	failed  uint64
}

// soak returns what is wrong with the proxies; an error means that it could not find out.
func soak(ctx context.Context, o *options, stdout io.Writer) (faults []string, err error) {
	r := &run{o: o, stdout: stdout, begin: time.Now()}
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return nil, err
	}
	if r.file, err = os.Create(o.out); err != nil {
		return nil, err
	}
	defer r.file.Close()
	defer r.rig.stop()
	if err := r.rig.start(o.proxy); err != nil {
		return nil, err
	}
	before, err := r.sample("before")
	if err != nil {
		return nil, err
	}
	if err := r.loadFor(ctx); err != nil {
		return r.load.faults(), err
	}
	after, err := r.settle(ctx, before)
	if err != nil {
		return r.load.faults(), err
	}
	t := r.load.total()
	fmt.Fprintf(stdout, "%d good requests in %v, %d failed: %v; %d misuses\n", t.Sent, o.time, t.Failed, t.Failures, r.load.misuser.done.Load())
	faults = r.load.faults()
	for _, p := range r.rig.proxies() {
		lines, grown := judgeGrowth(p.name, r.samples)
		for _, l := range lines {
			fmt.Fprintln(stdout, l)
		}
		faults = append(faults, grown...)
		faults = append(faults, judgeRest(p.name, before.Proxies[p.name], after.Proxies[p.name])...)
	}
	return faults, nil
}

// loadFor makes the load and samples meanwhile.
func (r *run) loadFor(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.load.run(ctx, &r.rig, r.o.time, r.o.rate)
	}()
	end := time.NewTimer(r.o.time)
	defer end.Stop()
	tick := time.NewTicker(r.o.every)
	defer tick.Stop()
	for {
		select {
		case <-done: // early: it could not start, or was interrupted
			return context.Cause(ctx)
		case <-end.C:
			<-done
			return nil
		case <-tick.C:
		}
		if _, err := r.sample("load"); err != nil {
			cancel()
			<-done
			return err
		}
	}
}

// settleTime is how long the proxies may take to close what they keep for the next request.
const settleTime = 3 * time.Minute

// settle waits until the proxies have given everything back, or for settleTime.
func (r *run) settle(ctx context.Context, before sample) (s sample, err error) {
	deadline := time.Now().Add(settleTime)
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		if s, err = r.sample("idle"); err != nil {
			return s, err
		}
		var kept []string
		for _, p := range r.rig.proxies() {
			kept = append(kept, judgeRest(p.name, before.Proxies[p.name], s.Proxies[p.name])...)
		}
		if len(kept) == 0 || time.Now().After(deadline) {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// sample reads both proxies, records it, and says so now and then.
func (r *run) sample(phase string) (sample, error) {
	t := r.load.total()
	now := time.Now()
	s := sample{At: now.UTC(), Seconds: now.Sub(r.begin).Seconds(), Phase: phase, Proxies: map[string]reading{},
		Sent: t.Sent, Done: t.Completed, Failed: t.Failed, Reasons: t.Failures, Misuses: r.load.misuser.done.Load()}
	for _, p := range r.rig.proxies() {
		v, err := p.read()
		if err != nil {
			return s, err
		}
		s.Proxies[p.name] = v
	}
	r.samples = append(r.samples, s)
	if err := json.NewEncoder(r.file).Encode(s); err != nil {
		return s, err
	}
	if now.Sub(r.said) >= 10*time.Second || phase == "before" {
		r.said = now
		r.say(&s)
	}
	return s, nil
}

// say shows a sample, the client's proxy first.
func (r *run) say(s *sample) {
	c, v := s.Proxies["client"], s.Proxies["server"]
	fmt.Fprintf(r.stdout, "%6.0fs %-6s %d sent, %d failed, %d misuses; RSS %.1f + %.1f MiB, anon %.1f + %.1f; goroutines %.0f + %.0f, fds %.0f + %.0f, ",
		s.Seconds, s.Phase, s.Sent, s.Failed, s.Misuses, c.RSS/1024, v.RSS/1024, c.Anon/1024, v.Anon/1024, c.Goroutines, v.Goroutines, c.Files, v.Files)
	fmt.Fprintf(r.stdout, "connections %.0f + %.0f, streams %.0f + %.0f; CPU %.0f + %.0f s, waited for one %.0f + %.0f s\n",
		c.Connections, v.Connections, c.Streams, v.Streams, c.CPU, v.CPU, c.Starved, v.Starved)
	if s.Failed != r.failed {
		r.failed = s.Failed
		fmt.Fprintf(r.stdout, "        failed until now: %v\n", s.Reasons)
	}
}
