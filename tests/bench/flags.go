package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"conduit.io/conduit/tests/bench/campaign"
	"conduit.io/conduit/tests/bench/peers"
	"conduit.io/conduit/tests/bench/workload"
)

// options are the flags.
type options struct {
	plan     campaign.Plan
	bin, out string
	from     string
	docs     string
	against  string
	memory   bool
	noMemory bool
	realTime bool
	quick    bool
	full     bool // nothing was left out
	peers    string
	works    string
}

const (
	usual  = 10 // rounds
	fewest = 5  // rounds that are published: the interval of a median of fewer says nothing
)

func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.IntVar(&o.plan.Rounds, "rounds", usual, "`number` of rounds")
	within := f.Duration("within", 0, "`time` in which to end: no round begins that would take longer (default: as long as it takes)")
	f.DurationVar(&o.plan.Sample, "sample", time.Second, "`time` that a sample of a closed loop takes, about")
	f.DurationVar(&o.plan.Latency, "latency", 5*time.Second, "`time` that a sample of an open loop takes")
	f.StringVar(&o.works, "workloads", "", "`names` of the workloads, separated by commas (default all)")
	f.StringVar(&o.peers, "peers", "", "`names` of the peers (default all)")
	f.BoolVar(&o.quick, "quick", false, "a few minutes: 3 short rounds of Conduit, HAProxy, nghttpx and the controls, no memory")
	f.BoolVar(&o.memory, "memory-only", false, "only Conduit's memory, against its ceilings; exit status 1 when one is exceeded")
	f.BoolVar(&o.noMemory, "no-memory", false, "leave the memory out")
	f.BoolVar(&o.realTime, "realtime", true, "schedule what is measured before everything else on the machine, where that is permitted")
	f.StringVar(&o.docs, "docs", "", "`directory` of the documentation, in which to publish a full run, or what --from reads")
	f.StringVar(&o.against, "against", "", "compare Conduit's CPU with that of another `commit`; exit status 1 when it is more than 10 % higher")
	f.StringVar(&o.from, "from", "", "measure nothing: report from this JSON `file`")
	f.StringVar(&o.bin, "bin", "bin", "`directory` of the binaries")
	f.StringVar(&o.out, "out", "bench/out", "`directory` for the report")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		help(f, stdout)
		return nil, nil
	} else if err != nil {
		return nil, usageError{err}
	}
	if f.NArg() > 0 {
		return nil, usageError{fmt.Errorf("unexpected argument %q", f.Arg(0))}
	}
	if err := o.resolve(); err != nil {
		return nil, usageError{err}
	}
	if *within > 0 {
		o.plan.Until = time.Now().Add(*within)
	}
	return o, nil
}

func help(f *flag.FlagSet, w io.Writer) {
	fmt.Fprint(w, "usage: bench [flags]\n\n")
	f.VisitAll(func(o *flag.Flag) {
		kind, text := flag.UnquoteUsage(o)
		if o.DefValue != "" && o.DefValue != "false" {
			text += " (default " + o.DefValue + ")"
		}
		fmt.Fprintf(w, "  --%-20s %s\n", o.Name+" "+kind, text)
	})
	fmt.Fprintf(w, "\nworkloads: %s\npeers:     %s\n", strings.Join(workloadNames(), " "), strings.Join(peerNames(), " "))
}

// quickPeers are those of a quick run.
var quickPeers = "direct,l4,conduit,conduit-mesh,haproxy,nghttpx"

func (o *options) resolve() error {
	o.full = o.works == "" && o.peers == "" && !o.quick && !o.noMemory
	if o.quick {
		o.plan.Rounds, o.plan.Sample, o.plan.Latency, o.noMemory = 3, o.plan.Sample/2, o.plan.Latency/2, true
		if o.peers == "" {
			o.peers = quickPeers
		}
	}
	switch {
	case o.plan.Rounds < 1 || o.plan.Rounds > 1000:
		return fmt.Errorf("--rounds: %d is not within 1 to 1000", o.plan.Rounds)
	case o.plan.Sample < 50*time.Millisecond || o.plan.Latency < 500*time.Millisecond:
		return errors.New("--sample is at least 50ms, --latency at least 500ms")
	}
	for _, name := range choice(o.works, workloadNames()) {
		i := slices.IndexFunc(workload.All, func(w *workload.Workload) bool { return w.Name == name })
		if i < 0 {
			return fmt.Errorf("--workloads: %q is none of %s", name, strings.Join(workloadNames(), ", "))
		}
		o.plan.Workloads = append(o.plan.Workloads, workload.All[i])
	}
	defs := peers.Defs()
	for _, name := range choice(o.peers, peerNames()) {
		i := slices.IndexFunc(defs, func(d *peers.Def) bool { return d.Name == name })
		if i < 0 {
			return fmt.Errorf("--peers: %q is none of %s", name, strings.Join(peerNames(), ", "))
		}
		o.plan.Peers = append(o.plan.Peers, defs[i])
	}
	return nil
}

func choice(list string, all []string) []string {
	if list == "" {
		return all
	}
	return strings.Split(list, ",")
}

func workloadNames() []string {
	var out []string
	for _, w := range workload.All {
		out = append(out, w.Name)
	}
	return out
}

func peerNames() []string {
	var out []string
	for _, d := range peers.Defs() {
		out = append(out, d.Name)
	}
	return out
}
