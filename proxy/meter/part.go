package meter

// Part is a part of the way of a request through the proxy.
type Part uint8

// The parts. Those up to Response follow each other, and add up to the latency.
const (
	Queue    Part = iota // waiting for a place on an upstream connection, failed attempts included
	Connect              // of that wait, the dial and the TLS handshake of the connection that came of it
	Proxy                // in the batches of the loop that sent the request on, and its response back
	Request              // the rest of the request's body was on its way
	Upstream             // from the end of the request to the first byte of the response
	Response             // from there to its end

	// Of Upstream, where another proxy is between.
	Network     // the links
	Peer        // in that proxy
	Application // the application, to its first byte

	parts // how many there are
)

var partNames = [parts]string{
	Queue: "queue", Connect: "connect", Proxy: "proxy", Request: "request", Upstream: "upstream", Response: "response",
	Network: "network", Peer: "proxy", Application: "application",
}

// partScale has a lower start than latencyScale, and fewer steps: there are many histograms of parts.
var partScale = newScale(
	0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000,
)

// split is the histograms of parts; nil: nothing was measured.
type split [parts]*histogram

func (s *split) add(p Part, nanos int64) { measure(&s[p], nanos) }

// measured is how many parts have a histogram.
func (s *split) measured() (n int) {
	for _, h := range s {
		if h != nil {
			n++
		}
	}
	return n
}

func (s *split) clone() (c split) {
	for p, h := range s {
		c[p] = h.copy()
	}
	return c
}

// measure counts a duration in a histogram of a part, made when it is needed.
func measure(h **histogram, nanos int64) {
	if *h == nil {
		*h = &histogram{}
	}
	(*h).add(partScale, nanos)
}
