package control

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"

	"conduit.io/conduit/mesh"
)

const usage = `conduit-controller serves the mesh's trust bundle.

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
