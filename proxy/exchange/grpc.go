package exchange

import (
	"strconv"
	"strings"

	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2/hpack"
)

const grpcPrefix = "application/grpc"

// GRPC reports whether a request or response is one of gRPC, or of gRPC-Web.
func (h *Head) GRPC() bool {
	rest, ok := strings.CutPrefix(h.Get("content-type"), grpcPrefix)
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';' || strings.HasPrefix(rest, "-web"))
}

// GRPCWeb reports whether the request is a call of gRPC-Web: its status comes in the body, and it needs no HTTP/2.
func (h *Head) GRPCWeb() bool { return strings.HasPrefix(h.Get("content-type"), grpcPrefix+"-web") }

// grpcType is the content-type of an answer that the mesh gives to a call.
func (h *Head) grpcType() hpack.HeaderField {
	v := grpcPrefix
	if h.GRPCWeb() { // such clients insist on their own
		v, _, _ = strings.Cut(h.Get("content-type"), ";")
	}
	return hpack.HeaderField{Name: "content-type", Value: v}
}

// GRPCStatus is the gRPC status code that stands for a reason: as the reason's HTTP status maps to it (http-grpc-status-mapping),
// but for those of which gRPC itself says more.
func GRPCStatus(reason mesh.Reason) int {
	switch reason {
	case mesh.ReasonTimeout:
		return 4 // DEADLINE_EXCEEDED
	case mesh.ReasonPlaintext, mesh.ReasonNotMeshTarget:
		return 7 // PERMISSION_DENIED
	case mesh.ReasonBadRequest, mesh.ReasonTooLarge, mesh.ReasonUpstreamProto:
		return 13 // INTERNAL
	}
	return 14 // UNAVAILABLE
}

// lostCode is the gRPC status for a lost connection: that a server fell silent is not the call's own deadline.
func lostCode(reason mesh.Reason) int {
	if reason == mesh.ReasonTimeout {
		return 14
	}
	return GRPCStatus(reason)
}

// grpcFields are a status, as trailers have it.
func grpcFields(code int, reason mesh.Reason, detail string) []hpack.HeaderField {
	return []hpack.HeaderField{
		{Name: "grpc-status", Value: strconv.Itoa(code)},
		{Name: "grpc-message", Value: grpcMessage(detail)},
		{Name: mesh.ReasonHeader, Value: string(reason)},
	}
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

// breakOff ends a gRPC response that has begun, and will not come to its own end, with a status that says why, after what
// has arrived of it. A reset would reach the application without a reason, and as an error of the protocol. It reports
// false where there is no place for a status.
func (s *Stream) breakOff(code int, reason mesh.Reason, why string) bool {
	if !s.headSent || s.local || s.Tunnel || s.got[Up] || !s.Req.GRPC() {
		return false
	}
	f := grpcFields(code, reason, why)
	switch {
	case s.Req.GRPCWeb():
		if s.web == nil || !s.web.between() || s.Res.Get("content-length") != "" {
			return false
		}
		s.q[Down].push(s.pool, s.web.end(f))
	case s.Req.Major == 2:
		s.Trailers = append(s.trailBuf[:0], f...)
	default:
		return false
	}
	s.got[Up] = true
	s.dropUpstreamQueue()
	s.Pump(Down)
	return true
}

// GRPCStatus is the status of a call: in trailers, in the last frame of a body (gRPC-Web), or in the head of a response
// that has nothing else. It is empty when there is none, and no number when it cannot be read.
func (s *Stream) GRPCStatus() string {
	for i := range s.Trailers {
		if s.Trailers[i].Name == "grpc-status" {
			return s.Trailers[i].Value
		}
	}
	if s.Res == nil || s.Res.Status != 200 {
		return ""
	}
	if s.web != nil && s.web.status != "" {
		return s.web.status
	}
	return s.Res.Get("grpc-status")
}
