package exchange

import (
	"errors"
	"strconv"
	"strings"

	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2/hpack"
)

// Fail answers with a failure that the mesh made: a short text with a conduit-reason field; for gRPC a trailers-only
// response; for an opaque connection, or after the response has begun, a reset. The stream may have ended on return.
func (s *Stream) Fail(status int, reason mesh.Reason, detail string) {
	if s.dead {
		return
	}
	s.Reason = reason
	rf := hpack.HeaderField{Name: mesh.ReasonHeader, Value: string(reason)}
	if s.Req.Major != 0 && s.Req.GRPC() {
		s.Respond(200, []hpack.HeaderField{
			{Name: "content-type", Value: "application/grpc"},
			{Name: "grpc-status", Value: strconv.Itoa(GRPCStatus(reason))},
			{Name: "grpc-message", Value: grpcMessage(detail)},
			rf,
		}, nil)
		return
	}
	s.Respond(status, []hpack.HeaderField{{Name: "content-type", Value: "text/plain; charset=utf-8"}, rf}, []byte(detail))
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
		if s.breakOff(s.Reason, why) {
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
	}
	return "the upstream server ended the exchange before it answered"
}

func lostStatus(reason mesh.Reason) int {
	if reason == mesh.ReasonTimeout {
		return 504
	}
	return 502
}

// breakOff ends a gRPC response that has begun, and will not come to its own end, with trailers that say why, after what
// has arrived of it. A reset would reach the application without a reason, and as an error of the protocol.
func (s *Stream) breakOff(reason mesh.Reason, why string) bool {
	if s.Req.Major != 2 || !s.headSent || s.local || s.Tunnel || s.got[Up] || !s.Req.GRPC() {
		return false
	}
	s.got[Up] = true
	s.dropUpstreamQueue()
	s.Trailers = append(s.trailBuf[:0],
		hpack.HeaderField{Name: "grpc-status", Value: strconv.Itoa(GRPCStatus(reason))},
		hpack.HeaderField{Name: "grpc-message", Value: grpcMessage(why)},
		hpack.HeaderField{Name: mesh.ReasonHeader, Value: string(reason)})
	s.Pump(Down)
	return true
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

// GRPCStatus is the gRPC status code that stands for a reason.
func GRPCStatus(reason mesh.Reason) int {
	switch reason {
	case mesh.ReasonTimeout, mesh.ReasonConnectTimeout:
		return 4 // DEADLINE_EXCEEDED
	case mesh.ReasonPlaintext, mesh.ReasonPeerIdentity, mesh.ReasonNotMeshTarget:
		return 7 // PERMISSION_DENIED
	case mesh.ReasonConnect, mesh.ReasonTLS, mesh.ReasonNoEndpoints, mesh.ReasonOverload, mesh.ReasonDraining,
		mesh.ReasonUpstreamReset, mesh.ReasonNoCertificate:
		return 14 // UNAVAILABLE
	}
	return 13 // INTERNAL
}

// grpcMessage percent-encodes what a grpc-message may not hold (gRPC over HTTP/2, "Responses").
func grpcMessage(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' {
			b.WriteByte('%')
			b.WriteByte("0123456789ABCDEF"[c>>4])
			b.WriteByte("0123456789ABCDEF"[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
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
