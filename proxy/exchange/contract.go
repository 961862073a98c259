// Package exchange is the proxy's one request model: an HTTP request with its response, a tunnel, or an opaque TCP
// connection is a Stream between a downstream codec (which received it) and an upstream codec (which carries it on).
// Codecs are packages h1, h2 and opaque; they sit on flow.Conn. Everything runs on one shard loop; nothing locks.
package exchange

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

// Head is a request's or a response's header section in HTTP/2 terms. It is immutable once handed out, and may be
// shared by many streams: a codec returns the same *Head for an identical header block, so a Head is also a cache key.
type Head struct {
	Method    string // request
	Scheme    string // request
	Authority string // request
	Path      string // request
	// Protocol is that of an extended CONNECT (RFC 8441), whose Method is CONNECT, or else an HTTP/1.1 Upgrade token; empty
	// otherwise. A server may pass over the second wish, not over the first.
	Protocol string
	Status   int // response
	Major    int // HTTP version of the message as received: 1 or 2; 0: an opaque connection
	Minor    int
	Absolute bool // the request target named scheme and authority (HTTP/1.1 absolute-form)
	// ID is not 0 for a head that repeats (see Pool.Intern), and then worth remembering what it encodes to. It wraps
	// around: equal IDs alone do not make heads the same.
	ID uint32
	// Fields are the regular fields, names lower-case, in order. Connection-specific ones (RFC 9110, 7.6.1) are gone.
	Fields []hpack.HeaderField

	// Route is the Handler's memo: what it decided for this Head. Valid while RouteGen is the Handler's generation. A head
	// is shared by connections that have nothing in common but their shard and ServerOptions.Internal, so the memo
	// depends on nothing else.
	Route    any
	RouteGen uint64
}

// Get is the first value of the regular field name (lower-case), or "".
func (h *Head) Get(name string) string {
	for i := range h.Fields {
		if h.Fields[i].Name == name {
			return h.Fields[i].Value
		}
	}
	return ""
}

// Idempotent reports whether the request may be repeated by its nature (RFC 9110, 9.2.2).
func (h *Head) Idempotent() bool {
	switch h.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return h.Protocol == ""
	}
	return false
}

// Handler decides what happens with streams. One Handler serves many connections.
type Handler interface {
	// Request is called once for every new Stream, when its head has arrived. The Handler calls Forward, Respond or
	// Fail on it, now or later; body bytes that arrive before wait, bounded by flow control.
	Request(s *Stream)
	// Response is called when the final response head is there (s.Res), before it is forwarded.
	Response(s *Stream)
	// Lost is called when the upstream connection failed before anything of the response had arrived and before any
	// body byte was discarded, so that the request can be sent again, as it was. Returning true promises another
	// Forward, Respond or Fail; false lets the stream fail with reason.
	Lost(s *Stream, reason mesh.Reason) bool
	// Done is called once, last; the Stream is reused afterwards.
	Done(s *Stream)
}

// Upstream is a client codec on one connection. Obtained from h1.NewClient, h2.NewClient or opaque.NewClient.
type Upstream interface {
	// Send starts s on this connection; called by Stream.Forward only. extra is appended to the request's fields.
	Send(s *Stream, extra []hpack.HeaderField)
	// Room is how many more streams it would take now; 0 when busy, draining or closed.
	Room() int
	// Active is how many streams it carries.
	Active() int
	// Served is how many streams it has carried to their end.
	Served() uint64
	// Drain lets the active streams finish, then closes; Room is 0 from now on.
	Drain()
	// Close resets the active streams and closes.
	Close()
}

// ServerOptions configure a downstream codec.
type ServerOptions struct {
	Clock flow.Clock
	// Pool is the shard's; nil: the connection makes its own.
	Pool *Pool
	// Conn is the Handler's own value; every Stream of the connection carries it.
	Conn any
	// Internal marks a link between two Conduit proxies: conduit-* fields are let through to the Handler, and
	// extended CONNECT is enabled. Elsewhere conduit-* request fields are removed (nobody may forge them).
	Internal bool
	// Extended says that extended CONNECT is announced to the client and taken (RFC 8441); it is on a link.
	Extended bool
	// OnClose is called when the connection has ended, after its last stream's Done.
	OnClose func(err error)
	// OnViolation, if set, is called when the client broke the protocol or abused it. The connection may go on.
	OnViolation func(v Violation)
}

// Burden is what a client's connection makes the proxy hold; a server codec.
type Burden interface {
	// Held is how many bytes wait in it: bodies that one of the sides does not take, input that waits for its turn, and
	// the connection's backlog.
	Held() int
	// Taken counts bytes of bodies that the client has taken.
	Taken() uint64
	// Shed ends it, because others need the room.
	Shed()
}

// Violation is what a peer did against its protocol, or at our expense.
type Violation struct {
	Reason mesh.Reason
	Abuse  mesh.Abuse // none, if it merely broke the protocol
	Detail string
}

// ClientOptions configure an upstream codec.
type ClientOptions struct {
	Clock flow.Clock
	// Pool is the shard's; nil: the connection makes its own.
	Pool *Pool
	// Internal as in ServerOptions: conduit-* response fields are kept, and extended CONNECT is used for upgrades.
	Internal bool
	// Streams, if set, is what connections to one server know of its limit on concurrent streams, and share: what the
	// last SETTINGS said, 0 if nothing yet. A new connection starts with it.
	Streams *uint32
	// OnChange is called when Room may have become positive, or when the connection has ended (Ended true).
	OnChange func(u Upstream, ended bool, err error)
	// OnViolation, if set, is called when the server broke the protocol or abused it.
	OnViolation func(v Violation)
}
