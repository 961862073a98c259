// Package meter counts what the proxy carries. Counters live in series, one for each set of labels, held by the code
// that counts, so that counting is an addition and no look-up. Each shard has a Set of its own. Only the shard's loop
// touches it, so nothing here is atomic; who wants to read it asks the loop for a copy (Set.Read), and any goroutine
// turns copies into Prometheus text (Write).
package meter

// Direction is the side of the pod on which a connection was taken.
type Direction uint8

// The directions.
const (
	Outbound Direction = iota // the pod is the client
	Inbound                   // the pod is the server
)

// Protocol is what a connection carries.
type Protocol uint8

// The protocols.
const (
	HTTP1 Protocol = iota
	HTTP2
	GRPC
	TCP
	Protocols // how many there are
)

// TLS is how a connection is secured.
type TLS uint8

// The values of TLS.
const (
	MTLS  TLS = iota // both sides authenticated
	Local            // both sides on this node, identities known from the kernel
	None             // plaintext
	TLSes            // how many there are
)

var (
	directions = [...]string{Outbound: "outbound", Inbound: "inbound"}
	protocols  = [Protocols]string{HTTP1: "http1", HTTP2: "http2", GRPC: "grpc", TCP: "tcp"}
	tlses      = [TLSes]string{MTLS: "mtls", Local: "local", None: "none"}
)

// DefaultRoute is the route of requests that no rule has chosen one for.
const DefaultRoute = "default"

// Key is a set of labels.
type Key struct {
	Direction Direction
	Protocol  Protocol
	TLS       TLS
	Src, Dst  string // namespace/name, "unknown", "external"
	Route     string // of requests; connections have none
}

// other is the label value that takes what exceeds the bound on series.
const other = "other"

// rest is the key of what exceeds the bound.
func (k Key) rest() Key {
	k.Src, k.Dst = other, other
	if k.Route != "" {
		k.Route = other
	}
	return k
}

// labels are the labels as text; an empty route has none.
func (k Key) labels() string {
	l := `direction="` + directions[k.Direction] + `",src="` + escape(k.Src) + `",dst="` + escape(k.Dst) +
		`",protocol="` + protocols[k.Protocol] + `",tls="` + tlses[k.TLS] + `"`
	if k.Route != "" {
		l += `,route="` + escape(k.Route) + `"`
	}
	return l
}
