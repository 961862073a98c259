package meter

import (
	"slices"
	"sync/atomic"

	"conduit.io/conduit/mesh"
)

// reasons index the failure counters. Those not listed count as the last.
var reasons = [...]mesh.Reason{
	mesh.ReasonNone, mesh.ReasonNoEndpoints, mesh.ReasonConnect, mesh.ReasonConnectTimeout, mesh.ReasonTLS,
	mesh.ReasonPeerIdentity, mesh.ReasonPlaintext, mesh.ReasonUpstreamReset, mesh.ReasonUpstreamProto,
	mesh.ReasonDownstreamReset, mesh.ReasonBadRequest, mesh.ReasonTooLarge, mesh.ReasonOverload, mesh.ReasonDraining,
	mesh.ReasonNotMeshTarget, mesh.ReasonNoCertificate, mesh.ReasonTimeout, mesh.ReasonUnresolved,
	other,
}

func reasonIndex(r mesh.Reason) int {
	for i := range reasons {
		if reasons[i] == r {
			return i
		}
	}
	return len(reasons) - 1
}

// byReason is a counter for each reason, for any goroutine.
type byReason [len(reasons)]atomic.Uint64

// Outcome is how a request or a connection ended, bounded and packed: a number of the few that a series meets.
type Outcome uint32

const (
	classes   = 6  // of status: none, 1xx to 5xx
	codes     = 19 // of gRPC: none, 0 to 16, other
	otherCode = codes - 1
)

// NewOutcome packs an Outcome. ok: it was a success. status is the response's, 0 if there was none; grpc its grpc-status,
// empty if there was none or it was not gRPC.
func NewOutcome(ok bool, status int, grpc string, reason mesh.Reason) Outcome {
	// A status over 599 counts as 5xx (RFC 9110, 15).
	o := Outcome(min(max(status, 0)/100, classes-1))
	if !ok {
		o += classes
	}
	o *= codes * Outcome(len(reasons))
	if grpc != "" {
		o += Outcome(codeIndex(grpc) * len(reasons))
	}
	if reason != mesh.ReasonNone {
		o += Outcome(reasonIndex(reason))
	}
	return o
}

func codeIndex(s string) int {
	switch {
	case s == "":
		return 0
	case len(s) == 1 && s[0] >= '0' && s[0] <= '9':
		return 1 + int(s[0]-'0')
	case len(s) == 2 && s[0] == '1' && s[1] >= '0' && s[1] <= '6':
		return 11 + int(s[1]-'0')
	}
	return otherCode
}

// unpack gives an Outcome's labels, and whether it was a success.
func (o Outcome) unpack() (ok bool, class, code, reason string) {
	reason = string(reasons[o%Outcome(len(reasons))])
	o /= Outcome(len(reasons))
	switch c := int(o % codes); c {
	case 0:
	case otherCode:
		code = other
	default:
		code = number(float64(c - 1))
	}
	o /= codes
	if c := int(o % classes); c > 0 {
		class = number(float64(c)) + "xx"
	}
	return o/classes == 0, class, code, reason
}

// rest is an Outcome beyond the bound: whether it was a success, and of which class, is left.
func (o Outcome) rest() Outcome {
	n := codes * Outcome(len(reasons))
	return o/n*n + Outcome(len(reasons)) - 1
}

// tally counts outcomes: a short list, because a series meets few of them.
type tally []tallied

type tallied struct {
	n uint64
	o Outcome
}

// maxTally bounds a tally: a server may send every gRPC status with every status, and another proxy every reason.
const maxTally = 64

func (t *tally) add(o Outcome) {
	for i := range *t {
		if (*t)[i].o == o {
			(*t)[i].n++
			return
		}
	}
	if len(*t) >= maxTally && o != o.rest() {
		t.add(o.rest())
		return
	}
	*t = append(*t, tallied{1, o})
}

// sum adds tallies up, in the order of outcomes.
func sum(all []tally) tally {
	var out tally
	for _, t := range all {
		for _, x := range t {
			i, found := slices.BinarySearchFunc(out, x.o, func(y tallied, o Outcome) int { return int(y.o) - int(o) })
			if found {
				out[i].n += x.n
			} else {
				out = slices.Insert(out, i, x)
			}
		}
	}
	return out
}

// GRPCOK classifies a grpc-status as Linkerd does: codes that blame the server are failures (Unknown 2,
// DeadlineExceeded 4, PermissionDenied 7, Internal 13, Unavailable 14, DataLoss 15); those that answer the client's
// own mistake are not. A missing status is a failure: the call was cut off.
func GRPCOK(status string) bool {
	switch status {
	case "", "2", "4", "7", "13", "14", "15":
		return false
	}
	return true
}
