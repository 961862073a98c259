package exchange

import "time"

// A client that has announced the length of a body has the body, and must send at least minPace bytes a second of it, or
// the request is answered 408 after slowTicks looks at it, which is 20 to 30 s. That is little enough for the worst of
// networks. It is not demanded
//   - of a body without announced length: it may be made as it is sent (gRPC, uploads that follow a log, tunnels), and
//     may be silent for ever;
//   - once the response has begun: then both sides talk as they please;
//   - while the server does not take what has come.
const (
	// PaceTick is how often server codecs look at the bodies that are under way.
	PaceTick  = 10 * time.Second
	minPace   = 256
	slowTicks = 3
)

// Slow is called every PaceTick for a stream whose request has not all come, and which the connection does not hold
// back: owed says that the client has announced more. It reports whether the client is too slow.
func (s *Stream) Slow(owed bool) bool {
	came := s.ReqBytes - s.paced
	s.paced = s.ReqBytes
	if !owed || s.Res != nil || s.Tunnel || s.ports[Down].Held > 0 || came >= minPace*uint64(PaceTick/time.Second) {
		s.slow = 0
		return false
	}
	s.slow++
	return s.slow >= slowTicks
}
