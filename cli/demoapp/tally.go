package demoapp

import (
	"cmp"
	"maps"
	"slices"
	"sync"
)

// Call counts what a client has seen of one destination in one protocol. A call of tcp is a connection with a short
// conversation.
type Call struct {
	Destination string `json:"destination"`
	Protocol    string `json:"protocol"` // http1, http2, grpc or tcp
	OK          int64  `json:"ok"`
	Failed      int64  `json:"failed"`
	Crossed     int64  `json:"crossed"` // of OK: answered by a pod on another node
	LastError   string `json:"last_error,omitempty"`
}

type callKey struct{ destination, protocol string }

// tally is safe for concurrent use.
type tally struct {
	mu sync.Mutex
	by map[callKey]*Call
}

func newTally() *tally { return &tally{by: map[callKey]*Call{}} }

func (t *tally) count(destination, protocol string, crossed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := callKey{destination, protocol}
	c := t.by[k]
	if c == nil {
		c = &Call{Destination: destination, Protocol: protocol}
		t.by[k] = c
	}
	switch {
	case err != nil:
		c.Failed++
		c.LastError = err.Error()
	default:
		c.OK++
		if crossed {
			c.Crossed++
		}
	}
}

// calls is a copy of the counts.
func (t *tally) calls() []Call {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Call, 0, len(t.by))
	for _, k := range slices.SortedFunc(maps.Keys(t.by), func(a, b callKey) int {
		return cmp.Or(cmp.Compare(a.destination, b.destination), cmp.Compare(a.protocol, b.protocol))
	}) {
		out = append(out, *t.by[k])
	}
	return out
}
