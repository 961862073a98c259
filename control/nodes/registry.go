// Package nodes keeps what agents report of their nodes, and writes to Kubernetes what others should see of it.
package nodes

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/control/access"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Registry is what was last reported of every node. It is safe for concurrent use. Messages that it gives out are
// immutable.
type Registry struct {
	now    func() time.Time
	change func(node string) // called without the lock, after every report that changed something

	mu    sync.Mutex
	nodes map[string]*state
}

type state struct {
	agent  *nodev1.AgentState
	pods   map[string]*nodev1.PodState // by UID
	at     time.Time                   // of the last report
	since  time.Time                   // when it became ready, or not ready, or its stream ended
	pod    access.Pod                  // that the agent runs in, or ran in
	stream *Stream                     // nil: not connected
}

// reportWithin is how long agents may be silent, as api/proto documents it.
const reportWithin = 15 * time.Second

// judge is what is to be made of n, and since when.
func (n *state) judge(now time.Time) (nodev1.Node_State, time.Time) {
	switch {
	case n.stream == nil:
		return nodev1.Node_STATE_AWAY, n.since
	case now.Sub(n.at) > reportWithin:
		return nodev1.Node_STATE_SILENT, n.at
	case n.agent.GetReady():
		return nodev1.Node_STATE_READY, n.since
	}
	return nodev1.Node_STATE_NOT_READY, n.since
}

// NewRegistry makes an empty one. change may be nil.
func NewRegistry(now func() time.Time, change func(node string)) *Registry {
	if change == nil {
		change = func(string) {}
	}
	return &Registry{now: now, change: change, nodes: map[string]*state{}}
}

// Stream is one agent's; Close it.
type Stream struct {
	r     *Registry
	node  string
	pod   access.Pod
	begun bool
	end   func() // tells the handler that a newer stream has come
}

// Open makes a stream, of the node's agent that runs in pod. end is called, once at most, when another stream of the node takes its place.
func (r *Registry) Open(node string, pod access.Pod, end func()) *Stream {
	return &Stream{r: r, node: node, pod: pod, end: end}
}

// maxPods bounds what one node may report.
const maxPods = 4096

// Take takes a report in. It reports false if it breaks the protocol: the first must be full and have the agent, and
// a node has at most maxPods.
func (st *Stream) Take(m *nodev1.ReportRequest) bool {
	r := st.r
	r.mu.Lock()
	n := r.nodes[st.node]
	switch {
	case !st.begun && (!m.Full || m.Agent == nil):
		r.mu.Unlock()
		return false
	case n == nil:
		n = &state{}
		r.nodes[st.node] = n
	case st.begun && n.stream != st: // another one has taken its place
		r.mu.Unlock()
		return true
	}
	if old := n.stream; old != nil && old != st {
		old.end()
	}
	now := r.now()
	was, _ := n.judge(now)
	changed := !st.begun
	st.begun, n.stream, n.at, n.pod = true, st, now, st.pod
	if m.Agent != nil && !proto.Equal(m.Agent, n.agent) {
		n.agent, changed = m.Agent, true
	}
	if is, _ := n.judge(now); is != was {
		n.since, changed = now, true
	}
	if m.Full {
		n.pods = make(map[string]*nodev1.PodState, len(m.Pods))
		changed = true
	}
	for _, p := range m.Pods {
		n.pods[p.Uid], changed = p, true
	}
	for _, uid := range m.RemovedPods {
		delete(n.pods, uid)
	}
	ok := len(n.pods) <= maxPods
	r.mu.Unlock()
	if changed {
		r.change(st.node)
	}
	return ok
}

// Close ends the stream: the node counts as not connected from now on, unless another stream has taken its place.
func (st *Stream) Close() {
	st.r.mu.Lock()
	n := st.r.nodes[st.node]
	mine := n != nil && n.stream == st
	if mine {
		n.stream, n.since = nil, st.r.now()
	}
	st.r.mu.Unlock()
	if mine {
		st.r.change(st.node)
	}
}

// Forget drops a node that is no more.
func (r *Registry) Forget(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.nodes[node]; n != nil && n.stream == nil {
		delete(r.nodes, node)
	}
}

// Reset drops everything: this replica does not lead any more.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.nodes {
		if n.stream != nil {
			n.stream.end()
		}
	}
	clear(r.nodes)
}

// Get is one node; nil: nothing was reported of it.
func (r *Registry) Get(name string, pods bool) *nodev1.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[name]
	if n == nil || n.agent == nil {
		return nil
	}
	state, since := n.judge(r.now())
	out := &nodev1.Node{Name: name, Agent: n.agent, Connected: n.stream != nil, LastReportAt: timestamppb.New(n.at),
		State: state, Since: timestamppb.New(since)}
	if pods {
		out.Pods = slices.SortedFunc(maps.Values(n.pods), func(a, b *nodev1.PodState) int {
			return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.Uid, b.Uid))
		})
	}
	return out
}

// Agent is the pod that the node's agent runs in, or ran in last.
func (r *Registry) Agent(node string) access.Pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.nodes[node]; n != nil {
		return n.pod
	}
	return access.Pod{}
}

// Names are the nodes that have reported, in order.
func (r *Registry) Names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.nodes))
}

// Count is how many nodes have reported, by state, and their pods, by enrolment.
type Count struct {
	Nodes map[nodev1.Node_State]int
	Pods  map[nodev1.PodState_Enrolment]int
}

// Count counts, for metrics.
func (r *Registry) Count() Count {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := Count{Nodes: map[nodev1.Node_State]int{}, Pods: map[nodev1.PodState_Enrolment]int{}}
	now := r.now()
	for _, n := range r.nodes {
		state, _ := n.judge(now)
		c.Nodes[state]++
		for _, p := range n.pods {
			c.Pods[p.Enrolment]++
		}
	}
	return c
}
