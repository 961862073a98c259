package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/api/nodev1"
)

// remembered is for how long a pod counts as bypassed after a bypass was seen: long enough for people to see it, too.
const remembered = time.Minute

// bypasses notices that connections of enrolled pods have passed by the proxy. The zero value is ready.
type bypasses struct {
	pods map[string]*bypass // by UID
}

type bypass struct {
	counted map[string]uint64
	last    time.Time // the newest; zero: none since this agent looks
	message string
}

// note compares p's counters with those of the last time, and has p say that it was bypassed, in ways that the mesh has not decided
// itself: nobody asked for those, and there should be none.
func (b *bypasses) note(p *nodev1.PodState, now time.Time) {
	known, counted := b.pods[p.Uid], p.GetSockets().GetBypassed()
	if known == nil { // what an earlier agent has reported is not reported again
		known = &bypass{counted: counted}
		if b.pods == nil {
			b.pods = map[string]*bypass{}
		}
		b.pods[p.Uid] = known
	}
	var how []string
	for reason := range kernel.Bypass(kernel.BypassCount) {
		name := reason.String()
		if n := counted[name]; reason.Fault() && n > known.counted[name] {
			how = append(how, fmt.Sprintf("%d %s", n-known.counted[name], name))
		}
	}
	known.counted = counted
	if len(how) > 0 {
		known.last = now
		known.message = strings.Join(how, ", ") + ": connections went past the proxy, in the clear; its rules and programs are repaired when they differ"
	}
	if p.Enrolment == nodev1.PodState_ENROLMENT_ENROLLED && now.Sub(known.last) < remembered {
		p.Enrolment, p.Message = nodev1.PodState_ENROLMENT_BYPASSED, known.message
	}
}

// keep forgets the pods that are gone.
func (b *bypasses) keep(there map[string]bool) {
	for _, uid := range slices.Collect(maps.Keys(b.pods)) {
		if !there[uid] {
			delete(b.pods, uid)
		}
	}
}
