package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/api/nodev1"
)

// remembered is for how long a pod counts as bypassed after a bypass was seen: long enough for people to see it, too.
const remembered = time.Minute

// bypassFile has, in the run directory, what was told of bypasses.
const bypassFile = "bypasses.json"

// bypasses notices that connections of enrolled pods have passed by the proxy. The zero value begins with what it sees first.
type bypasses struct {
	path string // of the file with what was told, so that the next agent tells what has happened in between; empty: none
	log  *slog.Logger
	pods map[string]*bypass // by UID; nil: nothing was seen yet
}

type bypass struct {
	counted map[string]uint64 // by reason; faults alone
	last    time.Time         // the newest; zero: none since this agent looks
	message string
}

// load takes up what an earlier agent has told. Where none has, what was counted before counts as told.
func (b *bypasses) load() {
	data, err := os.ReadFile(b.path)
	var told map[string]map[string]uint64
	if err == nil {
		err = json.Unmarshal(data, &told)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			b.log.Warn("what was told of bypasses cannot be read; those of before are not told again", "error", err)
		}
		return
	}
	b.pods = map[string]*bypass{}
	for uid, counted := range told {
		b.pods[uid] = &bypass{counted: counted}
	}
}

func (b *bypasses) store() {
	if b.path == "" {
		return
	}
	told := map[string]map[string]uint64{}
	for uid, known := range b.pods {
		if len(known.counted) > 0 {
			told[uid] = known.counted
		}
	}
	data, err := json.Marshal(told)
	if err == nil {
		err = os.WriteFile(b.path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(b.path+".new", b.path)
	}
	if err != nil {
		b.log.Warn("what was told of bypasses cannot be stored; the next agent may not tell of some", "error", err)
	}
}

// look compares all pods' counters with those of the last time, and has a pod say that it was bypassed, in ways that the mesh has not
// decided itself: nobody asked for those, and there should be none.
func (b *bypasses) look(pods []*nodev1.PodState, now time.Time) {
	first := b.pods == nil
	if first {
		b.pods = map[string]*bypass{}
	}
	there, changed := map[string]bool{}, first
	for _, p := range pods {
		if p.Sockets != nil { // else it was never wired
			there[p.Uid] = true
			changed = b.note(p, first, now) || changed
		}
	}
	for _, uid := range slices.Collect(maps.Keys(b.pods)) {
		if !there[uid] {
			changed = changed || len(b.pods[uid].counted) > 0
			delete(b.pods, uid)
		}
	}
	if changed {
		b.store()
	}
}

// note looks at one pod, and reports whether there is anything new to be stored. told: what was counted before was told before.
func (b *bypasses) note(p *nodev1.PodState, told bool, now time.Time) bool {
	faults := faultsOf(p)
	known := b.pods[p.Uid]
	if known == nil {
		known = &bypass{}
		if told {
			known.counted = faults
		}
		b.pods[p.Uid] = known
	}
	var how []string
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		if n := faults[name]; n > known.counted[name] {
			how = append(how, fmt.Sprintf("%d %s", n-known.counted[name], name))
		}
	}
	changed := !maps.Equal(faults, known.counted)
	known.counted = faults
	if len(how) > 0 {
		known.last = now
		known.message = strings.Join(how, ", ") + ": connections went past the proxy, in the clear; its rules and programs are repaired when they differ"
	}
	if p.Enrolment == nodev1.PodState_ENROLMENT_ENROLLED && now.Sub(known.last) < remembered {
		p.Enrolment, p.Message = nodev1.PodState_ENROLMENT_BYPASSED, known.message
	}
	return changed
}

// faultsOf is what was counted of the bypasses that should not be.
func faultsOf(p *nodev1.PodState) map[string]uint64 {
	out := map[string]uint64{}
	for reason := range kernel.Bypass(kernel.BypassCount) {
		if n := p.GetSockets().GetBypassed()[reason.String()]; reason.Fault() && n > 0 {
			out[reason.String()] = n
		}
	}
	return out
}
