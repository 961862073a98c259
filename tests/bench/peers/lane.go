package peers

// Lane is a way through a proxy: what comes in and what goes out.
type Lane string

// The lanes. Between two proxies of a mesh all HTTP is to travel as HTTP/2 over TLS, where the peer can.
const (
	H2   Lane = "h2"   // HTTP/2 in and out, with prior knowledge
	GRPC Lane = "grpc" // as H2; some peers need a configuration of its own for trailers
	H1   Lane = "h1"   // HTTP/1.1 in and out
	H1H2 Lane = "h1h2" // HTTP/1.1 in, HTTP/2 out
	Raw  Lane = "raw"  // bytes
)

// Role is the place of a process in a chain.
type Role int

// The roles.
const (
	Alone  Role = iota // plaintext on both sides
	Client             // the client's end of a mesh: plaintext in, mutual TLS out
	Server             // the server's end
)

// Link is one listener of a process.
type Link struct {
	Lane             Lane
	Listen, Upstream string
	In, Out          string // "http1", "http2" or "opaque"
}

func newLink(l Lane, r Role, listen, upstream string) Link {
	in, out := "http2", "http2"
	switch l {
	case H1, H1H2:
		in = "http1"
		if l == H1 {
			out = "http1"
		}
	case Raw:
		in, out = "opaque", "opaque"
	}
	if l != Raw && r == Client {
		out = "http2"
	}
	if l != Raw && r == Server {
		in = "http2"
	}
	return Link{Lane: l, Listen: listen, Upstream: upstream, In: in, Out: out}
}

// Hop is what a process's configuration is made from.
type Hop struct {
	Role  Role
	Links []Link
	Certs Certs
	Dir   string // for the process's files
}

// TLSIn and TLSOut say on which side TLS is spoken.
func (h Hop) TLSIn() bool { return h.Role == Server }

// TLSOut is TLSIn for the other side.
func (h Hop) TLSOut() bool { return h.Role == Client }

// Has reports whether the hop serves l.
func (h Hop) Has(l Lane) bool {
	for _, k := range h.Links {
		if k.Lane == l {
			return true
		}
	}
	return false
}
