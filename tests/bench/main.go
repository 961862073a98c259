// Command bench measures Conduit's proxy and its peers side by side: what a request costs, what latency is added, how
// much memory is used. See docs/benchmarks.md for the method and the results.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const (
	exitOK    = 0
	exitError = 1
	exitUsage = 64
)

// usageError is the caller's mistake.
type usageError struct{ error }

func main() {
	// Whoever reads what we print may end before us, as tee does at Ctrl-C: that must not be our end. Not ignored, because
	// children would inherit it.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := command(ctx, args, stdout, stderr)
	var bad usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(stderr, "bench: interrupted")
		return exitError
	case errors.As(err, &bad):
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "bench: %v\n", err)
	return exitError
}
