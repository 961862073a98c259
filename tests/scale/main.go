// Command scale measures the control plane at sizes that this computer has no nodes for. The API server, etcd and the controller are
// real, and so is what an agent speaks with the controller: its code, its token, its connection. Nodes and pods are objects only.
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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const about = `usage: scale --controller FILE [flags]

For each size: starts etcd and kube-apiserver, makes a cluster of so many nodes with 50 pods and 5 Services each, starts the
controller, connects an agent for every node, and measures. Exit status: 0; 1 when something went wrong or was lost; 64 usage.

`

type options struct {
	plan
	nodes     []int
	out, docs string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == profiledCommand {
		os.Exit(profiled(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(64)
	}
	if err := scale(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{plan: plan{progress: os.Stderr}}
	f := flag.NewFlagSet("scale", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	nodes := f.String("nodes", "10,100,1000", "`sizes`: how many nodes")
	f.StringVar(&o.controller, "controller", "", "the conduit-controller to measure, a `file`")
	f.StringVar(&o.profile, "profile", "", "`directory` for profiles of the controller, which is then this program's own copy of it")
	f.StringVar(&o.out, "out", "bench/out/scale.json", "`file` of results; sizes that are not measured now keep theirs")
	f.StringVar(&o.docs, "docs", "", "the page whose table is to be written anew, a `file`")
	f.Float64Var(&o.rate, "rate", 20, "endpoints that change in a `second`")
	f.DurationVar(&o.change, "change", 30*time.Second, "how `long` they go on")
	f.DurationVar(&o.rest, "rest", 20*time.Second, "how `long` nothing happens, to see what that costs")
	f.DurationVar(&o.limit, "limit", 20*time.Minute, "`time` for one step, after which it has failed")
	f.IntVar(&o.writers, "writers", 8, "`requests` at a time while the cluster is made")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, about)
		f.SetOutput(stdout)
		f.PrintDefaults()
		return nil, err
	} else if err != nil {
		return nil, err
	}
	for text := range strings.SplitSeq(*nodes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < minNodes || n > 5000 {
			return nil, fmt.Errorf("--nodes %s: want numbers from %d to 5000", *nodes, minNodes)
		}
		o.nodes = append(o.nodes, n)
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.controller == "" && o.profile == "":
		return nil, errors.New("--controller is missing")
	case o.rate < 1 || o.rate > 1000 || o.writers < 1:
		return nil, errors.New("--rate must be within 1 and 1000, and --writers be 1 at least")
	}
	return o, nil
}

// scale measures all sizes, and writes what came of it after each.
func scale(ctx context.Context, o *options, stdout io.Writer) error {
	points, err := readPoints(o.out)
	if err != nil {
		return err
	}
	var lost error
	for _, n := range o.nodes {
		p, err := measure(ctx, o.plan, n)
		if err != nil {
			return err
		}
		lost = errors.Join(lost, p.faults())
		points = append(slices.DeleteFunc(points, func(old *point) bool { return old.Nodes == n }), p)
		slices.SortFunc(points, func(a, b *point) int { return a.Nodes - b.Nodes })
		if err := writePoints(o.out, points); err != nil {
			return err
		}
	}
	fmt.Fprint(stdout, table(points))
	if o.docs != "" {
		return errors.Join(lost, rewrite(o.docs, table(points)))
	}
	return lost
}

func readPoints(path string) (points []*point, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &points)
	}
	return points, err
}

func writePoints(path string, points []*point) error {
	text, err := json.MarshalIndent(points, "", "\t")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
