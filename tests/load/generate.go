package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"time"

	"conduit.io/conduit/tests/load/backend"
	"conduit.io/conduit/tests/load/drive"
)

const runAbout = `
A closed loop keeps connections times streams requests going. An open loop starts requests at evenly spaced times and
measures from these, also when they could not leave in time (coordinated omission). A response with another status or
length than expected, or without its trailers, is a failure. Exit status: 0 when nothing failed, 1 otherwise, 64 usage.
`

type runFlags struct {
	cfg                    drive.Config
	target, proto, mode, o string
	report                 string
	expect                 int
}

// generate is `load run`.
func generate(ctx context.Context, args []string, stdout io.Writer) error {
	rf := runFlags{}
	f := rf.set()
	if shown, err := parse(f, args, stdout, runAbout); shown || err != nil {
		return err
	}
	if err := rf.resolve(f); err != nil {
		return usageError{err}
	}
	var news *news
	if rf.report != "" {
		news = follow(rf.report)
		rf.cfg.Report = news.now
	}
	res, err := drive.Run(ctx, rf.cfg)
	if err != nil {
		return err
	}
	if news != nil {
		if err := news.end(res); err != nil {
			return err
		}
	}
	if rf.o == "json" {
		err = json.NewEncoder(stdout).Encode(res)
	} else {
		res.Table(stdout)
	}
	if err == nil && (res.Failed > 0 || res.Completed == 0) {
		err = fmt.Errorf("%d of %d requests failed", res.Failed, res.Sent)
	}
	return err
}

func (r *runFlags) set() *flag.FlagSet {
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	c := &r.cfg
	f.StringVar(&r.target, "target", "", "`host:port` to send to")
	f.StringVar(&r.proto, "protocol", "h2c", "`name`: h2c, http1 or grpc")
	f.StringVar(&r.mode, "mode", "closed", "`loop`: closed or open")
	f.IntVar(&c.Connections, "connections", 1, "`number` of connections")
	f.IntVar(&c.Streams, "streams", 0, "concurrent requests on a connection, at most; a `number` (default 1, in an open loop 100)")
	f.Float64Var(&c.Rate, "rate", 0, "of an open loop, requests a `second` over all connections")
	f.IntVar(&c.Burst, "burst", 0, "of an open loop, `requests` that start together; the bursts are spaced evenly (default 1)")
	f.DurationVar(&c.Duration, "duration", 0, "`time` for which requests are started (default 10s without --requests)")
	f.IntVar(&c.Requests, "requests", 0, "`number` of requests after which to end")
	f.StringVar(&c.Path, "path", "", "`path` of the requests (default /, for gRPC /load.Echo/Unary)")
	f.StringVar(&c.Method, "method", "", "request `method` (default GET, with a body and for gRPC POST)")
	f.IntVar(&c.Body, "body", 0, "`bytes` of request body")
	f.BoolVar(&c.Unique, "unique", false, "a traceparent, an x-request-id and (but for gRPC) a query of its own for each request")
	f.Float64Var(&c.Churn, "churn", 0, "connections a `second` that are closed in order and replaced")
	f.DurationVar(&c.Timeout, "timeout", 10*time.Second, "`time` after which a request is given up")
	f.IntVar(&r.expect, "expect", -1, "`bytes` that a response must have; by default what `load backend` answers to the path, -2 for any")
	f.IntVar(&c.Status, "status", 200, "`code` that a response must have")
	f.StringVar(&r.report, "report", "", "`FILE` that always has what has become until now, as JSON; at the end, with \"ended\": true, the result")
	f.StringVar(&r.o, "o", "table", "output `format`: table or json")
	return f
}

func (r *runFlags) resolve(f *flag.FlagSet) error {
	c := &r.cfg
	if r.target == "" {
		return errors.New("--target is missing")
	}
	addr, err := net.ResolveTCPAddr("tcp", r.target)
	if err != nil {
		return fmt.Errorf("--target: %w", err)
	}
	c.Target, c.Authority, c.Protocol = addr.AddrPort(), r.target, drive.Protocol(r.proto)
	if r.o != "table" && r.o != "json" {
		return fmt.Errorf("-o %q: it is table or json", r.o)
	}
	switch r.mode {
	case "open":
		c.Open = true
	case "closed":
		if c.Rate != 0 {
			return errors.New("--rate needs --mode open")
		}
	default:
		return fmt.Errorf("--mode %q: it is closed or open", r.mode)
	}
	r.defaults()
	return c.Check()
}

// defaults fills in what depends on other flags.
func (r *runFlags) defaults() {
	c := &r.cfg
	grpc := c.Protocol == drive.GRPC
	if c.Duration == 0 && c.Requests == 0 {
		c.Duration = 10 * time.Second
	}
	if c.Streams == 0 {
		c.Streams = 1
		if c.Open && c.Protocol != drive.HTTP1 {
			c.Streams = 100
		}
	}
	if c.Path == "" {
		c.Path = "/"
		if grpc {
			c.Path = "/load.Echo/Unary"
		}
	}
	if c.Method == "" {
		c.Method = "GET"
		if grpc || c.Body > 0 {
			c.Method = "POST"
		}
	}
	if grpc {
		c.Trailer = "x-trailer"
	}
	switch sent := c.Body; {
	case r.expect != -1:
		c.Expect = max(r.expect, -1)
	case c.Method == "HEAD":
	default:
		if grpc {
			sent += 5
		}
		c.Expect = backend.Expected(c.Path, grpc, sent)
	}
}
