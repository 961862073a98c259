// Package workload knows what is measured: the requests, how they are generated, and what came of them.
package workload

import (
	"slices"
	"strconv"
	"time"

	"conduit.io/conduit/tests/bench/peers"
)

// Kind is what a workload finds out.
type Kind string

// The kinds.
const (
	CPU     Kind = "cpu"     // processor time of a request, with as many as can be (closed loop)
	Latency Kind = "latency" // what is added at a fixed rate (open loop)
	Bulk    Kind = "bulk"    // bytes a second of one connection
)

// Workload is one of them.
type Workload struct {
	Name  string
	Title string
	Kind  Kind
	Lane  peers.Lane
	// Tool is "h2load", which is neutral, where it can; else our own "load", or "bulk". Of HTTP/1.1, h2load takes an answer
	// without a reason phrase, which HAProxy gives to what came as HTTP/2, for a failure.
	Tool        string
	Connections int
	Streams     int
	Rate        int // requests a second, of an open loop
	Path        string
	Body        int  // bytes of the request
	Unique      bool // header fields that no two requests share
	Down        bool // from the server to the client
}

// All are the workloads, in the order of reports.
var All = []*Workload{
	{Name: "h2-c10-m10", Title: "HTTP/2, 10 connections × 10 streams", Kind: CPU, Lane: peers.H2, Tool: h2load, Connections: 10, Streams: 10, Path: "/"},
	{Name: "h2-c100-m1", Title: "HTTP/2, 100 connections × 1 stream", Kind: CPU, Lane: peers.H2, Tool: h2load, Connections: 100, Streams: 1, Path: "/"},
	{Name: "h1-c50", Title: "HTTP/1.1, 50 connections", Kind: CPU, Lane: peers.H1, Tool: load, Connections: 50, Streams: 1, Path: "/"},
	{Name: "h1h2-c50", Title: "HTTP/1.1 to HTTP/2, 50 connections", Kind: CPU, Lane: peers.H1H2, Tool: load, Connections: 50, Streams: 1, Path: "/"},
	{Name: "grpc", Title: "gRPC unary, unique headers, 10 × 10", Kind: CPU, Lane: peers.GRPC, Tool: load, Connections: 10, Streams: 10, Path: "/load.Echo/Unary", Body: 128, Unique: true},
	{Name: "body-10k", Title: "10 KB responses, 10 × 10", Kind: CPU, Lane: peers.H2, Tool: h2load, Connections: 10, Streams: 10, Path: "/bytes/10240"},
	{Name: "body-100k", Title: "100 KB responses, 10 × 10", Kind: CPU, Lane: peers.H2, Tool: h2load, Connections: 10, Streams: 10, Path: "/bytes/102400"},
	{Name: "upload-100k", Title: "100 KB uploads, 10 × 10", Kind: CPU, Lane: peers.H2, Tool: h2load, Connections: 10, Streams: 10, Path: "/upload", Body: 102400},
	{Name: "stream", Title: "streams of 50 × 1 KB, 10 × 10", Kind: CPU, Lane: peers.H2, Tool: load, Connections: 10, Streams: 10, Path: "/stream/50/1024"},
	{Name: "open-1k", Title: "HTTP/2 at 1,000 requests a second", Kind: Latency, Lane: peers.H2, Tool: load, Connections: 10, Rate: 1000, Path: "/"},
	{Name: "open-5k", Title: "HTTP/2 at 5,000 requests a second", Kind: Latency, Lane: peers.H2, Tool: load, Connections: 10, Rate: 5000, Path: "/"},
	{Name: "bulk-up", Title: "opaque TCP, to the server", Kind: Bulk, Lane: peers.Raw, Tool: bulk},
	{Name: "bulk-down", Title: "opaque TCP, to the client", Kind: Bulk, Lane: peers.Raw, Tool: bulk, Down: true},
}

// patience is how long a request of an open loop may take: a peer that cannot keep up fails, and soon.
const patience = "2s"

const (
	h2load = "h2load"
	load   = "load"
	bulk   = "bulk"
)

// Lanes are those that workloads need.
func Lanes(ws []*Workload) []peers.Lane {
	var out []peers.Lane
	for _, w := range ws {
		if !slices.Contains(out, w.Lane) {
			out = append(out, w.Lane)
		}
	}
	return out
}

// Size is how much of a workload to run: so many requests, or for a time.
type Size struct {
	Requests int
	Duration time.Duration
}

// h2loadArgs are the arguments of h2load. With windows of 1 GiB it never holds a server back.
func (w *Workload) h2loadArgs(addr, bodyFile string, n int) []string {
	out := []string{"-n", strconv.Itoa(n), "-c", strconv.Itoa(w.Connections), "-m", strconv.Itoa(w.Streams), "-w30", "-W30"}
	if w.Body > 0 {
		out = append(out, "-d", bodyFile)
	}
	return append(out, "http://"+addr+w.Path)
}

func (w *Workload) loadArgs(addr string, s Size) []string {
	protocol := "h2c"
	switch w.Lane {
	case peers.H1, peers.H1H2:
		protocol = "http1"
	case peers.GRPC:
		protocol = "grpc"
	}
	out := []string{"run", "-o", "json", "--target", addr, "--protocol", protocol, "--connections", strconv.Itoa(w.Connections), "--path", w.Path}
	if w.Kind == Latency {
		out = append(out, "--mode", "open", "--rate", strconv.Itoa(w.Rate), "--duration", s.Duration.String(), "--timeout", patience)
	} else {
		out = append(out, "--streams", strconv.Itoa(w.Streams), "--requests", strconv.Itoa(s.Requests))
	}
	if w.Body > 0 {
		out = append(out, "--body", strconv.Itoa(w.Body))
	}
	if w.Unique {
		out = append(out, "--unique")
	}
	return out
}
