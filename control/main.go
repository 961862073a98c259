package control

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"

	"conduit.io/conduit/control/kube"
	"conduit.io/conduit/mesh"

	"k8s.io/klog/v2"
)

const usage = `conduit-controller is the control plane of the mesh.

With --kubernetes it serves, by gRPC, gRPC-Web and JSON over TLS 1.3, the services that api/proto describes:
  conduit.discovery.v1.DiscoveryService  what lies behind an address
  conduit.identity.v1.IdentityService    certificates and roots
  conduit.node.v1.NodeService            what the agents report
and on the address --admin, in the clear, GET /healthz /readyz /version /metrics.

With --ca-dir, without Kubernetes, it serves in the clear:
  GET /v1/trust-bundle  the root certificates, PEM; read again when the file changes
  GET /healthz /readyz /version /metrics

Flags:
`

// Main runs the controller for a command line (without the program's name) until ctx ends, and returns the exit
// status: 0, 1 for an error, 64 for a command line that cannot be understood.
func Main(ctx context.Context, args []string, out, errOut io.Writer) int {
	flags := flag.NewFlagSet("conduit-controller", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	var cfg Config
	flags.StringVar(&cfg.Addr, "addr", DefaultAddr, "`host:port` to serve the API on")
	flags.StringVar(&cfg.CADir, "ca-dir", "", "`directory` of the certificate authority; its "+CAFile+" is the trust bundle")
	var cluster ClusterConfig
	kubernetes := flags.Bool("kubernetes", false, "run on Kubernetes")
	kubeconfig := flags.String("kubeconfig", "", "with --kubernetes: `file` that says how to reach the API server; default: what a pod finds")
	flags.StringVar(&cluster.Admin, "admin", "127.0.0.1:8086", "with --kubernetes: `host:port` of health and metrics")
	flags.StringVar(&cluster.Advertise, "advertise", "", "with --kubernetes: `host:port` where the other replicas reach --addr; default --addr")
	flags.StringVar(&cluster.Namespace, "namespace", "conduit", "with --kubernetes: `name` of the controller's namespace")
	flags.StringVar(&cluster.TrustDomain, "trust-domain", "cluster.local", "with --kubernetes: trust `domain` of the mesh")
	version := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(out)
		fmt.Fprint(out, usage)
		flags.PrintDefaults()
		return 0
	case err != nil:
		fmt.Fprintf(errOut, "× %v\n  next:  conduit-controller --help\n", err)
		return 64
	case flags.NArg() > 0:
		fmt.Fprintf(errOut, "× unexpected argument %q\n  next:  conduit-controller --help\n", flags.Arg(0))
		return 64
	}
	if *version {
		fmt.Fprintln(out, "conduit-controller", mesh.Version())
		return 0
	}
	cfg.Log = slog.New(slog.NewTextHandler(errOut, nil))
	if *kubernetes {
		return mainCluster(ctx, cluster, cfg, *kubeconfig, errOut)
	}
	s, err := New(cfg)
	if err != nil {
		fmt.Fprintf(errOut, "× %v\n  next:  conduit-controller --help\n", err)
		return 64
	}
	if err := s.Run(ctx); err != nil {
		fmt.Fprintf(errOut, "× %v\n", err)
		return 1
	}
	return 0
}

// mainCluster is Main on Kubernetes.
func mainCluster(ctx context.Context, cluster ClusterConfig, cfg Config, kubeconfig string, errOut io.Writer) int {
	if cfg.CADir != "" {
		fmt.Fprintf(errOut, "× --kubernetes and --ca-dir exclude each other: on Kubernetes the issuer is a Secret\n  next:  conduit-controller --help\n")
		return 64
	}
	cluster.Addr, cluster.Log = cfg.Addr, cfg.Log
	if cluster.Advertise == "" {
		cluster.Advertise = cfg.Addr
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // most of the heap is what is known of the cluster: to let as much garbage pile up would double it
	}
	klog.SetSlogLogger(cfg.Log)
	var err error
	if cluster.Kube, err = kube.Config(kubeconfig, "conduit-controller/"+mesh.Version()); err == nil {
		err = RunCluster(ctx, cluster)
	}
	if err != nil {
		fmt.Fprintf(errOut, "× %v\n", err)
		return 1
	}
	return 0
}
