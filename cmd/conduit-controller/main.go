// Command conduit-controller is the control plane of Conduit.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"conduit.io/conduit/control"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := control.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
