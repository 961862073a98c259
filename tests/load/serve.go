package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"

	"conduit.io/conduit/tests/load/backend"
	"conduit.io/conduit/tests/load/engine"
)

// serve is `load backend`.
func serve(ctx context.Context, args []string, stdout io.Writer) error {
	f := flag.NewFlagSet("backend", flag.ContinueOnError)
	addresses := f.String("address", "127.0.0.1:9000", "`addresses` to listen on, separated by commas; port 0 takes a free one")
	grace := f.Duration("grace", 0, "how `long` after SIGTERM clients may still be answered, while they are told to go elsewhere")
	about := "\nHTTP/1.1, HTTP/2 with prior knowledge and gRPC on each port. Prints the addresses once it listens. Paths:\n" + backend.Usage
	if shown, err := parse(f, args, stdout, about); shown || err != nil {
		return err
	}
	var listeners []*net.TCPListener
	var at []string
	for address := range strings.SplitSeq(*addresses, ",") {
		addr, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			return usageError{fmt.Errorf("--address: %w", err)}
		}
		ln, err := net.ListenTCP("tcp", addr)
		if err != nil {
			return err
		}
		defer ln.Close()
		listeners, at = append(listeners, ln), append(at, ln.Addr().String())
	}
	loop, err := engine.New()
	if err != nil {
		return err
	}
	var servers []*backend.Server
	for _, ln := range listeners {
		s, err := backend.Serve(loop, ln)
		if err != nil {
			return err
		}
		servers = append(servers, s)
	}
	stop := context.AfterFunc(ctx, func() {
		loop.Post(func() {
			if *grace <= 0 {
				loop.Stop()
				return
			}
			for _, s := range servers {
				s.Drain()
			}
			loop.Set(loop.NewTimer(loop.Stop), engine.Now()+int64(*grace))
		})
	})
	defer stop()
	fmt.Fprintf(stdout, "listening on %s\n", strings.Join(at, ","))
	return loop.Run()
}
