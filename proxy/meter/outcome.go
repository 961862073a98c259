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
	mesh.ReasonNotMeshTarget, mesh.ReasonNoCertificate, mesh.ReasonTimeout, other,
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

// Outcome is how a request, or a connection, ended.
type Outcome struct {
	OK     bool
	Status int    // of the response; 0: there was none
	GRPC   string // grpc-status; empty: none, or not gRPC
	Reason mesh.Reason
}

// ending is an Outcome, bounded and packed: as small as a number of the few that a series meets.
type ending uint32

const (
	classes   = 6  // of status: none, 1xx to 5xx
	codes     = 19 // of gRPC: none, 0 to 16, other
	otherCode = codes - 1
)

func (o *Outcome) pack() ending {
	e := ending(0)
	if !o.OK {
		e = 1
	}
	// A status over 599 counts as 5xx (RFC 9110, 15).
	e = e*classes + ending(min(max(o.Status, 0)/100, classes-1))
	e = e*codes + ending(codeIndex(o.GRPC))
	return e*ending(len(reasons)) + ending(reasonIndex(o.Reason))
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

// unpack gives an ending's labels, and whether it was a success.
func (e ending) unpack() (ok bool, class, code, reason string) {
	reason = string(reasons[e%ending(len(reasons))])
	e /= ending(len(reasons))
	switch c := int(e % codes); c {
	case 0:
	case otherCode:
		code = other
	default:
		code = number(float64(c - 1))
	}
	e /= codes
	if c := int(e % classes); c > 0 {
		class = number(float64(c)) + "xx"
	}
	return e/classes == 0, class, code, reason
}

// tally counts endings: a short list, because a series meets few of them.
type tally []tallied

type tallied struct {
	n uint64
	e ending
}

// maxTally bounds a tally: a server may send every gRPC status with every status, and another proxy every reason.
const maxTally = 64

func (t *tally) add(o *Outcome) {
	e := o.pack()
	for i := range *t {
		if (*t)[i].e == e {
			(*t)[i].n++
			return
		}
	}
	if len(*t) >= maxTally && o.Reason != other { // beyond the bound: whether and of which class is left
		t.add(&Outcome{OK: o.OK, Status: o.Status, Reason: other})
		return
	}
	*t = append(*t, tallied{1, e})
}

// sum adds tallies up, in the order of endings.
func sum(all []tally) tally {
	var out tally
	for _, t := range all {
		for _, x := range t {
			i, found := slices.BinarySearchFunc(out, x.e, func(y tallied, e ending) int { return int(y.e) - int(e) })
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
