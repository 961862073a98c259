package exchange

import (
	"errors"
	"strconv"

	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2/hpack"
)

// Fail answers with a failure that the mesh made: a line of text with a conduit-reason field; for gRPC a trailers-only
// response; for an opaque connection, or after the response has begun, a reset. The stream may have ended on return.
func (s *Stream) Fail(status int, reason mesh.Reason, detail string) {
	s.fail(status, GRPCStatus(reason), reason, detail)
}

// fail is Fail with a gRPC status of its own.
func (s *Stream) fail(status, code int, reason mesh.Reason, detail string) {
	if s.dead {
		return
	}
	s.Reason = reason
	if s.Req.Major != 0 && s.Req.GRPC() {
		s.Respond(200, append([]hpack.HeaderField{s.Req.grpcType()}, grpcFields(code, reason, detail)...), nil)
		return
	}
	s.Respond(status, []hpack.HeaderField{{Name: "content-type", Value: "text/plain; charset=utf-8"},
		{Name: mesh.ReasonHeader, Value: string(reason)}}, []byte(detail+"\n"))
}

// Expire ends a stream that has used up its time: with a failure if its response has not begun, with trailers if it is one
// of gRPC, and with a reset otherwise. The stream may have ended on return; else what is left is for the client to take.
func (s *Stream) Expire(why string) {
	if s.dead {
		return
	}
	s.Reason = mesh.ReasonTimeout
	if s.headSent && !s.local && !s.got[Up] {
		s.dropUpstream(Ending{Reason: s.Reason})
		if s.breakOff(GRPCStatus(s.Reason), s.Reason, why) {
			return
		}
	}
	s.Fail(HTTPStatus(s.Reason), s.Reason, why)
}

// LostReason is the mesh's word for the end of an upstream connection: the error's own, if it carries one (by a method
// MeshReason), else that the server ended it.
func LostReason(err error) mesh.Reason {
	var own interface{ MeshReason() mesh.Reason }
	if errors.As(err, &own) {
		return own.MeshReason()
	}
	return mesh.ReasonUpstreamReset
}

// lostDetail tells people why there is no response.
func lostDetail(reason mesh.Reason) string {
	switch reason {
	case mesh.ReasonUpstreamProto:
		return "the upstream server broke its protocol before it answered"
	case mesh.ReasonTooLarge:
		return "the head of the upstream server's response is too large"
	case mesh.ReasonTimeout:
		return "the upstream server has fallen silent"
	case mesh.ReasonNoUpgrade:
		return "the server speaks HTTP/2 and has not enabled WebSocket or other protocols over it"
	case mesh.ReasonTLS:
		return "the upstream server ended the TLS connection; it may not accept the proxy's certificate, and its log says why"
	}
	return "the upstream server ended the exchange before it answered"
}

func lostStatus(reason mesh.Reason) int {
	if reason == mesh.ReasonTimeout {
		return 504
	}
	return 502
}

// HTTPStatus is the status for a reason.
func HTTPStatus(reason mesh.Reason) int {
	switch reason {
	case mesh.ReasonConnectTimeout, mesh.ReasonTimeout:
		return 504
	case mesh.ReasonUpstreamReset, mesh.ReasonUpstreamProto:
		return 502
	case mesh.ReasonPlaintext, mesh.ReasonNotMeshTarget:
		return 403
	case mesh.ReasonBadRequest:
		return 400
	}
	return 503
}

func withLength(f []hpack.HeaderField, n int) []hpack.HeaderField {
	out := make([]hpack.HeaderField, 0, len(f)+1)
	for _, x := range f {
		if x.Name != "content-length" {
			out = append(out, x)
		}
	}
	return append(out, hpack.HeaderField{Name: "content-length", Value: strconv.Itoa(n)})
}
