package nodes

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"conduit.io/conduit/api/kube"
	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/control/access"

	corev1 "k8s.io/api/core/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/workqueue"
)

// Writer writes what agents report where Kubernetes shows it: the pods' condition conduit.io/Enrolled, that of the agents' own pods,
// conduit.io/Wired, Events of what is wrong, and the taint that keeps pods off nodes without an agent. Only the leader runs one.
//
// What is about pods and what is about nodes have a queue each: a node that is ready does not wait until thousands of pods have
// their conditions.
type Writer struct {
	api   corev1client.CoreV1Interface // for the pods of nodes, and their Events
	nodes corev1client.CoreV1Interface // for nodes, and their agents
	r     *Registry
	known Known
	log   *slog.Logger
	now   func() time.Time

	foreign atomic.Uint64 // reports of pods of other nodes
	told    access.Told

	mu      sync.Mutex
	pods    queue                          // of nodes whose pods' conditions are to be looked at; nil: it does not run
	wires   queue                          // of nodes that are to be looked at themselves
	written map[string]map[subject]written // by node: what the cache may not have seen yet
	wired   map[string]string              // by node, the life of the agent for which the taint was seen to be off
	agents  map[string]access.Pod          // by node, the pod of which conduit.io/Wired was last looked at
}

// subject is a condition of a pod.
type subject struct {
	uid  string
	kind corev1.PodConditionType
}

type queue = workqueue.TypedRateLimitingInterface[string]

// written is a condition as it was written; Type empty: it was taken away.
type written struct {
	corev1.PodCondition
	at time.Time
}

// Known is what the cache of pods says of their conditions.
type Known interface {
	// Condition is one of Conduit's without its times, zero for none, and the pod's node; none: there is no such pod, or it is
	// bound to no node.
	Condition(namespace, name, uid string, kind corev1.PodConditionType) (c corev1.PodCondition, node string)
	// Node reports whether there is a node of that name.
	Node(name string) bool
}

const (
	// atOnce is how many conditions are written at a time, so that a slow API server is not given more.
	atOnce = 8
	// again is when to look again whether a pod has been seen.
	again = 2 * time.Second
	// echo is how long the cache may take to see what was written.
	echo = 10 * time.Second
	// sweepEvery is how often nodes are looked for that are no more. Their agents ended before them, and nothing more is heard.
	sweepEvery = time.Minute
)

// NewWriter makes a Writer; call Run, and Changed for every node of which something has changed. What is about the pods of nodes is
// written by api, what is about nodes and their agents by nodes: how fast, is theirs to bound.
func NewWriter(api, nodes corev1client.CoreV1Interface, r *Registry, known Known, log *slog.Logger) *Writer {
	return &Writer{api: api, nodes: nodes, r: r, known: known, log: log, now: time.Now}
}

// Changed has the node looked at soon, if w runs.
func (w *Writer) Changed(node string) {
	w.after(node, kube.ConditionEnrolled, 0)
	w.after(node, kube.ConditionWired, 0)
}

// after has the node looked at again, for a condition of its pods or for its own.
func (w *Writer) after(node string, kind corev1.PodConditionType, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.pods
	if kind == kube.ConditionWired {
		q = w.wires
	}
	if q != nil {
		q.AddAfter(node, d)
	}
}

// Run writes until ctx ends, a few nodes at a time. It may be called again.
func (w *Writer) Run(ctx context.Context) {
	fresh := func() queue {
		return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second))
	}
	pods, wires := fresh(), fresh()
	w.begin(pods, wires)
	for _, node := range w.r.Names() {
		w.Changed(node)
	}
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() { w.serve(ctx, pods, w.conditions) })
	}
	workers.Go(func() { w.serve(ctx, wires, w.wire) })
	for sweep := time.NewTicker(sweepEvery); ctx.Err() == nil; {
		select {
		case <-sweep.C:
			w.sweep()
		case <-ctx.Done():
			sweep.Stop()
		}
	}
	w.begin(nil, nil)
	pods.ShutDown()
	wires.ShutDown()
	workers.Wait()
}

// sweep forgets the nodes that are no more.
func (w *Writer) sweep() {
	for _, node := range w.r.Names() {
		if !w.known.Node(node) {
			w.r.Forget(node) // unless its agent is connected
		}
	}
}

// begin begins anew, with these queues.
func (w *Writer) begin(pods, wires queue) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pods, w.wires = pods, wires
	w.written, w.wired, w.agents = map[string]map[subject]written{}, map[string]string{}, map[string]access.Pod{}
}

// serve has the nodes of q written, until it is shut down. What fails is tried again with all that is left.
func (w *Writer) serve(ctx context.Context, q queue, write func(ctx context.Context, node string) error) {
	for {
		node, end := q.Get()
		if end {
			return
		}
		if err := write(ctx, node); err != nil && ctx.Err() == nil {
			w.log.Warn("state of a node not written; trying again", "node", node, "error", err.Error())
			q.AddRateLimited(node)
		} else {
			q.Forget(node)
		}
		q.Done(node)
	}
}

// conditions brings those of a node's pods up to date.
func (w *Writer) conditions(ctx context.Context, node string) error {
	n := w.r.Get(node, true)
	if n == nil {
		return nil
	}
	var first error
	there := make(map[string]bool, len(n.Pods))
	for _, p := range n.Pods {
		there[p.Uid] = true
		if err := w.put(ctx, n.Name, enrolment(p)); err != nil && first == nil {
			first = err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.written[n.Name] {
		if s.kind == kube.ConditionEnrolled && !there[s.uid] {
			delete(w.written[n.Name], s)
		}
	}
	return first
}

// wanted is the condition that p should have, without its times; Type empty: none.
func wanted(p *nodev1.PodState) corev1.PodCondition {
	c := corev1.PodCondition{Type: kube.ConditionEnrolled, Status: corev1.ConditionFalse, Reason: p.Reason, Message: p.Message,
		ObservedGeneration: p.ObservedGeneration}
	word := ""
	switch p.Enrolment {
	case nodev1.PodState_ENROLMENT_ENROLLED:
		c.Status, word = corev1.ConditionTrue, "Enrolled"
	case nodev1.PodState_ENROLMENT_PENDING:
		word = "Pending"
	case nodev1.PodState_ENROLMENT_LEAVING:
		word = "Leaving"
	case nodev1.PodState_ENROLMENT_REFUSED:
		word = "Refused"
	case nodev1.PodState_ENROLMENT_BYPASSED:
		word = "Bypassed"
	default:
		if p.Reason == "" {
			return corev1.PodCondition{} // nobody asked for it
		}
	}
	if c.Reason == "" {
		c.Reason = word
	}
	return c
}

func same(a, b corev1.PodCondition) bool {
	return a.Type == b.Type && a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message && a.ObservedGeneration == b.ObservedGeneration
}
