package cli

import (
	"errors"
	"os"
	"time"

	"conduit.io/conduit/cli/demo"
	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/cli/preflight"

	"github.com/spf13/cobra"
)

// pipeRun is how long the load runs when nobody could press Ctrl-C.
const pipeRun = 20 * time.Second

func newDemo(env Env) *cobra.Command {
	var f format
	o := demo.Options{Out: env.Out, Err: env.Err, Getenv: env.Getenv}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a mesh of two nodes on this machine, without Kubernetes",
		Long: `Run a mesh of two nodes on this machine, without Kubernetes, and show its traffic.

Each node is a network namespace with its own conduit-agent and conduit-proxy; each pod is a network namespace wired by
the CNI plugins bridge and conduit-cni. A small application calls itself in HTTP/1.1, HTTP/2, gRPC and raw TCP, on one
node and across: calls that cross are encrypted and mutually authenticated. It needs root, cgroup2 and BTF, touches
nothing of the machine's own network, and removes everything at the end: after --for, on Ctrl-C, or when it fails.

The table shows what the clients' proxies measured. The totals, and requests, success_rate, rps and protocols of
-o json, are what the application's clients counted themselves (a call of tcp is one connection with a short
conversation). p50_ms and p99_ms are over all HTTP and gRPC requests as the proxies saw them; mtls_pct is the share of
the calls answered by a pod of another node that the proxies sent by mutual TLS; bypassed counts connections to other
pods that the kernel saw pass no proxy.`,
		Example: `  sudo conduit demo
  sudo conduit demo --for 20s -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.For < 0:
				return usageError{errors.New("--for is negative")}
			case !(o.Rate > 0 && o.Rate <= 10_000): // nor NaN
				return usageError{errors.New("--rate: want more than 0 and at most 10000")}
			}
			s := env.System()
			if err := preflight.ForDemo(s); err != nil {
				return err
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			o.BinDir, o.Program = s.BinDir, []string{exe, "demo-app"}
			o.JSON, o.Wide = f == formatJSON, f == formatWide
			o.Live = output.IsTerminal(env.Out) && env.Getenv("TERM") != "dumb"
			if o.For == 0 && (!o.Live || o.JSON) {
				o.For = pipeRun
			}
			return demo.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().DurationVar(&o.For, "for", 0, "how long to run the load (default: on a terminal until Ctrl-C, else "+pipeRun.String()+")")
	cmd.Flags().Float64Var(&o.Rate, "rate", 40, "requests per second that users make; each causes four calls more")
	addFormat(cmd, &f)
	return cmd
}
