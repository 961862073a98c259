package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"conduit.io/conduit/tests/bench/campaign"
	"conduit.io/conduit/tests/bench/peers"
	"conduit.io/conduit/tests/bench/report"
	"conduit.io/conduit/tests/bench/rig"
	"conduit.io/conduit/tests/bench/workload"
)

func command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if o == nil {
		return err
	}
	if o.from != "" {
		r, err := report.Read(o.from)
		if err != nil {
			return err
		}
		if err := show(r, stdout); err != nil || o.docs == "" {
			return err
		}
		return r.Publish(o.docs)
	}
	switch {
	case o.memory:
		return memoryOnly(ctx, o, stdout, stderr)
	case o.against != "":
		return regression(ctx, o, stdout, stderr)
	}
	return measure(ctx, o, stdout, stderr)
}

// bench is what every measurement needs.
type bench struct {
	rig     *rig.Rig
	starter *peers.Starter
	tools   *workload.Tools
}

// open makes a rig with the backend that all peers forward to. Its Close ends everything.
func open(ctx context.Context, o *options) (*bench, error) {
	cores, err := rig.PickCores()
	if err != nil {
		return nil, err
	}
	r, err := rig.Open(cores, o.realTime)
	if err != nil {
		return nil, err
	}
	b := &bench{rig: r}
	if err := b.serve(ctx, o); err != nil {
		r.Close()
		return nil, err
	}
	return b, nil
}

func (b *bench) serve(ctx context.Context, o *options) error {
	certs, err := peers.MakeCerts(b.rig.Dir)
	if err != nil {
		return err
	}
	if b.tools, err = workload.FindTools(b.rig, o.bin, certs); err != nil {
		return err
	}
	ports := rig.NewPorts()
	backend, err := ports.Addr()
	if err != nil {
		return err
	}
	sink, err := ports.Addr()
	if err != nil {
		return err
	}
	p, err := b.rig.Backend("backend", []string{b.tools.Load, "backend", "--address", backend}, nil)
	if err != nil {
		return err
	}
	q, err := b.rig.Backend("sink", []string{b.tools.Bulk, "serve", "--listen", sink}, nil)
	if err != nil {
		return err
	}
	if err := p.Ready(ctx, backend); err != nil {
		return err
	}
	b.starter = &peers.Starter{Rig: b.rig, Ports: ports, Certs: certs, Bin: o.bin, Backend: backend, Sink: sink}
	return q.Ready(ctx, sink)
}

func measure(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	b, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer b.rig.Close()
	r := begin(o, b.rig)
	err = everything(ctx, b, o, r, stderr)
	r.Settings.Full = r.Settings.Full && r.Settings.Rounds > 0
	// What was measured before an error, or before somebody had enough, is worth keeping.
	if late := finish(o, r, stdout, stderr); late != nil {
		return late
	}
	return err
}

// everything measures the memory first, so that an end before time costs nothing but rounds, of which there are several.
func everything(ctx context.Context, b *bench, o *options, r *report.Run, progress io.Writer) error {
	c := &campaign.Campaign{Plan: o.plan, Starter: b.starter, Tools: b.tools, Progress: progress}
	if err := c.Start(ctx, r); err != nil {
		return err
	}
	if !o.noMemory {
		if err := fullMemory(ctx, b, o, r, progress); err != nil {
			return err
		}
	}
	return c.Run(ctx)
}

// finish writes the report, publishes it if that is wanted and it is good enough, and shows it: last, because whom it is
// shown to may be gone.
func finish(o *options, r *report.Run, stdout, stderr io.Writer) error {
	r.Derive()
	if err := save(o, r, stderr); err != nil {
		return err
	}
	switch {
	case o.docs == "":
	case !r.Settings.Full || r.Settings.Rounds < fewest:
		fmt.Fprintf(stderr, "not published: that takes all peers and workloads, the memory, and %d rounds; --from FILE --docs %s does it nonetheless\n", fewest, o.docs)
	default:
		if err := r.Publish(o.docs); err != nil {
			return err
		}
		fmt.Fprintln(stderr, "published:", filepath.Join(o.docs, "benchmarks.md"))
	}
	return show(r, stdout)
}

// save writes the report to the directory for reports.
func save(o *options, r *report.Run, stderr io.Writer) error {
	r.Seconds = time.Since(r.Started).Seconds()
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("make the report's directory: %w", err)
	}
	path := filepath.Join(o.out, r.Started.Format("20060102-150405")+".json")
	if err := r.Write(path); err != nil {
		return err
	}
	fmt.Fprintln(stderr, "written:", path)
	return nil
}

func begin(o *options, g *rig.Rig) *report.Run {
	return &report.Run{
		Schema: report.Schema, Started: time.Now().UTC().Truncate(time.Second), Commit: head(), Machine: rig.Describe(g.Cores),
		Settings: report.Settings{
			SampleSeconds: o.plan.Sample.Seconds(), LatencySeconds: o.plan.Latency.Seconds(), SettleSeconds: settle.Seconds(), Full: o.full, RealTime: g.RealTime,
		},
	}
}

// head is the commit that is checked out; nothing when this is no repository.
func head() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// show prints the tables.
func show(r *report.Run, stdout io.Writer) error {
	for _, t := range r.Tables() {
		if err := t.Text(stdout); err != nil {
			return err
		}
	}
	return nil
}
