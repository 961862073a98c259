// Package drive is the client that generates load on one thread: closed loop (so many requests at a time), or open loop
// (requests, or bursts of them, at evenly spaced times, whatever became of those before).
package drive

import (
	"fmt"
	"net/netip"
	"time"
)

// Protocol is what is spoken to the target.
type Protocol string

// The protocols. gRPC is HTTP/2 with a message as body and trailers expected.
const (
	H2C   Protocol = "h2c"
	HTTP1 Protocol = "http1"
	GRPC  Protocol = "grpc"
)

// Config is a load.
type Config struct {
	Target      netip.AddrPort
	Authority   string // host as the requests name it; Target when empty
	Protocol    Protocol
	Open        bool // open loop, at Rate; else closed loop
	Connections int
	Streams     int     // concurrent requests of a connection; 1 for HTTP1
	Rate        float64 // requests a second over all connections
	Burst       int     // of an open loop, requests that start together; 0 is 1
	Duration    time.Duration
	Requests    int // end after so many; 0 for no bound but Duration
	Path        string
	Method      string
	Body        int // bytes, of which gRPC makes one message
	Unique      bool
	Churn       float64       // connections closed in order and replaced, a second
	Timeout     time.Duration // of a request, from when it is sent
	Expect      int           // bytes that a response's body must have; -1 to take any
	Status      int           // that a response must have
	Trailer     string        // that a gRPC response must have beside grpc-status; "" for none
	// Report, unless nil, is called every 100 ms, on the load's thread, with what has become until then, but without
	// latencies. It must not keep the Result.
	Report func(*Result)
}

// Check says what is wrong with c.
func (c *Config) Check() error {
	switch {
	case c.Protocol != H2C && c.Protocol != HTTP1 && c.Protocol != GRPC:
		return fmt.Errorf("protocol %q is not h2c, http1 or grpc", c.Protocol)
	case c.Connections < 1 || c.Connections > 60000:
		return fmt.Errorf("%d connections are not within 1 to 60000", c.Connections)
	case c.Streams < 1 || c.Streams > 1<<20:
		return fmt.Errorf("%d streams are not within 1 to %d", c.Streams, 1<<20)
	case c.Protocol == HTTP1 && c.Streams != 1:
		return fmt.Errorf("%d streams: HTTP/1.1 has one request at a time on a connection", c.Streams)
	case c.Open && !(c.Rate > 0 && c.Rate <= 1e6):
		return fmt.Errorf("rate %v is not within 0 to 1000000", c.Rate)
	case c.Burst < 0 || c.Burst > 1e5:
		return fmt.Errorf("burst %d is not within 0 to 100000", c.Burst)
	case c.Churn < 0 || c.Churn > 1e4:
		return fmt.Errorf("churn %v is not within 0 to 10000", c.Churn)
	case c.Duration <= 0 && c.Requests <= 0:
		return fmt.Errorf("neither a duration nor a number of requests")
	case c.Requests < 0 || c.Duration < 0 || c.Body < 0 || c.Body > 1<<30:
		return fmt.Errorf("requests, duration and body are not negative, and a body has at most 1 GiB")
	case c.Timeout <= 0:
		return fmt.Errorf("timeout %v is not positive", c.Timeout)
	case c.Path == "" || c.Path[0] != '/':
		return fmt.Errorf("path %q does not begin with a slash", c.Path)
	}
	return nil
}
