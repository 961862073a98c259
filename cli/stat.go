package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"conduit.io/conduit/cli/metrics"
	"conduit.io/conduit/cli/output"

	"github.com/spf13/cobra"
)

// statOptions are the flags of stat.
type statOptions struct {
	admin  []string
	window time.Duration
	side   string
	format format
}

func newStat(env Env) *cobra.Command {
	var o statOptions
	cmd := &cobra.Command{
		Use:   "stat [NAME...]",
		Short: "Show who calls whom: success rate, requests per second, latency, mTLS",
		Long: `Show the traffic that node agents report: for each source, destination and protocol the success rate, requests
per second, latency percentiles, and whether the calls were mutually authenticated.

NAMEs limit the edges to those from or to a workload or service: "web" or "shop/web".

The figures are those of a window that begins when the command starts; --window 0 shows the totals since the agents'
proxies started (without a rate). A call of protocol tcp is a connection. Percentiles are interpolated inside histogram
buckets. MTLS: "local" calls stayed inside one node's proxy and crossed no wire; "none" was plaintext.

With -o wide, PROXY is what the proxy of that side took of the latency, UPSTREAM the time from there to the first byte of the
response, and APP what of that was the application itself: a sample, where another proxy is between, and unknown outside the
mesh.`,
		Example: `  conduit stat
  conduit stat web --admin 10.0.0.4:4191 --admin 10.0.0.5:4191 --window 30s
  conduit stat -o json --window 0`,
		RunE: func(cmd *cobra.Command, args []string) error { return stat(cmd.Context(), env, o, args) },
	}
	cmd.Flags().StringSliceVar(&o.admin, "admin", []string{"127.0.0.1:4191"}, "admin `address` of an agent, host:port or unix:PATH; may be repeated")
	cmd.Flags().DurationVarP(&o.window, "window", "w", 5*time.Second, "how long to watch; 0 for totals")
	cmd.Flags().StringVar(&o.side, "side", "outbound", "whose figures: outbound (the clients' proxies) or inbound (the servers')")
	complete(cmd, "side", "outbound", "inbound")
	addFormat(cmd, &o.format)
	return cmd
}

func stat(ctx context.Context, env Env, o statOptions, names []string) error {
	switch {
	case o.window < 0:
		return usageError{fmt.Errorf("--window %s is negative", o.window)}
	case o.side != "outbound" && o.side != "inbound":
		return usageError{fmt.Errorf("--side %q: want outbound or inbound", o.side)}
	}
	sources := make([]*metrics.Source, len(o.admin))
	for i, addr := range o.admin {
		sources[i] = metrics.NewSource(addr)
		defer sources[i].Close()
	}
	samples, over, err := metrics.Window(ctx, sources, o.window)
	if err != nil {
		return &output.Problem{What: "no figures", Err: err,
			Cause: "no agent runs there, or it has another admin address: see admin.addr in its run directory",
			Next:  "conduit stat --admin HOST:PORT; on Kubernetes first kubectl -n conduit port-forward daemonset/conduit-agent 4191, or as docs/mesh.md says for a certain node"}
	}
	var edges []*metrics.Edge
	for _, e := range metrics.Edges(samples, o.side) {
		if concerns(e, names) {
			edges = append(edges, e)
		}
	}
	if o.format == formatJSON {
		enc := json.NewEncoder(env.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"window_seconds": over.Seconds(), "side": o.side, "edges": metrics.JSON(edges, over)})
	}
	if len(edges) == 0 {
		fmt.Fprintln(env.Err, "No traffic"+during(o.window)+".")
		return nil
	}
	return metrics.Table(edges, over, o.format == formatWide, output.StyleFor(env.Out, env.Getenv)).Write(env.Out)
}

func during(window time.Duration) string {
	if window == 0 {
		return " so far"
	}
	return " in " + window.String()
}

// concerns reports whether one of the names is the edge's source or destination, with or without its namespace.
func concerns(e *metrics.Edge, names []string) bool {
	if len(names) == 0 {
		return true
	}
	for _, end := range []string{e.Source, e.Destination} {
		_, short, _ := strings.Cut(end, "/")
		for _, name := range names {
			if name == end || name == short {
				return true
			}
		}
	}
	return false
}
