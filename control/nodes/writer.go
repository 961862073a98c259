package nodes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"conduit.io/conduit/api/kube"
	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/control/access"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/workqueue"
)

// Writer writes what agents report where Kubernetes shows it: the pods' condition conduit.io/Enrolled, Events of pods that
// are refused or bypassed, and the taint that keeps pods off nodes without an agent. Only the leader runs one.
//
// Conditions and taints have a queue each: a node that is ready does not wait until thousands of pods have their conditions.
type Writer struct {
	api   corev1client.CoreV1Interface // for pods and Events
	nodes corev1client.NodesGetter
	r     *Registry
	known Known
	log   *slog.Logger
	now   func() time.Time

	foreign atomic.Uint64 // reports of pods of other nodes
	told    access.Told

	mu      sync.Mutex
	pods    queue                         // of nodes whose pods' conditions are to be looked at; nil: it does not run
	taints  queue                         // of nodes whose taint is
	written map[string]map[string]written // by node and UID of the pod: what the cache may not have seen yet
	wired   map[string]string             // by node, the life of the agent for which the taint was seen to be off
}

type queue = workqueue.TypedRateLimitingInterface[string]

// written is a condition as it was written; Type empty: it was taken away.
type written struct {
	corev1.PodCondition
	at time.Time
}

// Known is what the cache of pods says of their condition.
type Known interface {
	// Enrolled is the condition without its times, zero for none, and the pod's node; none: there is no such pod, or it is
	// bound to no node.
	Enrolled(namespace, name, uid string) (c corev1.PodCondition, node string)
}

const (
	// atOnce is how many conditions are written at a time, so that a slow API server is not given more.
	atOnce = 8
	// again is when to look again whether a pod has been seen.
	again = 2 * time.Second
	// echo is how long the cache may take to see what was written.
	echo = 10 * time.Second
)

// NewWriter makes a Writer; call Run, and Changed for every node of which something has changed. Conditions and Events are written
// by api, and taints by nodes: how fast, is theirs to bound.
func NewWriter(api corev1client.CoreV1Interface, nodes corev1client.NodesGetter, r *Registry, known Known, log *slog.Logger) *Writer {
	return &Writer{api: api, nodes: nodes, r: r, known: known, log: log, now: time.Now}
}

// Changed has the node looked at soon, if w runs.
func (w *Writer) Changed(node string) {
	w.after(node, 0)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.taints != nil {
		w.taints.Add(node)
	}
}

func (w *Writer) after(node string, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pods != nil {
		w.pods.AddAfter(node, d)
	}
}

// Run writes until ctx ends, a few nodes at a time. It may be called again.
func (w *Writer) Run(ctx context.Context) {
	fresh := func() queue {
		return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second))
	}
	pods, taints := fresh(), fresh()
	w.mu.Lock()
	w.pods, w.taints, w.written, w.wired = pods, taints, map[string]map[string]written{}, map[string]string{}
	w.mu.Unlock()
	for _, node := range w.r.Names() {
		w.Changed(node)
	}
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() { w.serve(ctx, pods, w.conditions) })
	}
	workers.Go(func() { w.serve(ctx, taints, w.taint) })
	<-ctx.Done()
	w.mu.Lock()
	w.pods, w.taints = nil, nil
	w.mu.Unlock()
	pods.ShutDown()
	taints.ShutDown()
	workers.Wait()
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
		if err := w.pod(ctx, n.Name, p); err != nil && first == nil {
			first = err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for uid := range w.written[n.Name] {
		if !there[uid] {
			delete(w.written[n.Name], uid)
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

// pod writes p's condition if it differs from what the cache says, and from what was written a moment ago.
func (w *Writer) pod(ctx context.Context, node string, p *nodev1.PodState) error {
	have, at := w.known.Enrolled(p.Namespace, p.Name, p.Uid)
	switch at {
	case node:
	case "": // not seen yet; or gone, and soon the agent says so
		w.after(node, again)
		return nil
	default: // an agent speaks for its own node, and for no other
		w.foreign.Add(1)
		if w.told.First(node, w.now()) {
			w.log.Warn("an agent reports a pod of another node; the same is not logged again for a while", "agent", node, "pod", p.Namespace+"/"+p.Name, "node", at)
		}
		return nil
	}
	c := wanted(p)
	w.mu.Lock()
	last, ok := w.written[node][p.Uid]
	if ok && (same(have, last.PodCondition) || w.now().Sub(last.at) >= echo) { // seen; or undone by somebody
		delete(w.written[node], p.Uid)
		ok = false
	}
	w.mu.Unlock()
	if ok {
		have = last.PodCondition
		w.after(node, echo)
	}
	if same(c, have) {
		return nil
	}
	patch, err := w.patch(p, have, c)
	if err != nil {
		return err
	}
	_, err = w.api.Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // another pod has the name by now
		return nil
	}
	if err != nil {
		return fmt.Errorf("write the condition of %s/%s: %w", p.Namespace, p.Name, err)
	}
	w.mu.Lock()
	if w.written[node] == nil {
		w.written[node] = map[string]written{}
	}
	w.written[node][p.Uid] = written{c, w.now()}
	w.mu.Unlock()
	if alarming(p) && have.Reason != c.Reason {
		w.event(ctx, p, c)
	}
	return nil
}

// patch puts c in the place of have. While the status stays the same, so does the time since when.
func (w *Writer) patch(p *nodev1.PodState, have, c corev1.PodCondition) ([]byte, error) {
	entry := map[string]any{"type": kube.ConditionEnrolled}
	if c.Type == "" {
		entry["$patch"] = "delete"
	} else {
		entry["status"], entry["reason"], entry["message"], entry["observedGeneration"] = c.Status, c.Reason, c.Message, c.ObservedGeneration
		if have.Status != c.Status {
			since := metav1.NewTime(w.now())
			if p.Since.IsValid() {
				since = metav1.NewTime(p.Since.AsTime())
			}
			entry["lastTransitionTime"] = since
		}
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.Uid}, "status": map[string]any{"conditions": []any{entry}}})
}

func alarming(p *nodev1.PodState) bool {
	return p.Enrolment == nodev1.PodState_ENROLMENT_REFUSED || p.Enrolment == nodev1.PodState_ENROLMENT_BYPASSED
}

// event tells people. One that cannot be written is logged: the condition says the same.
func (w *Writer) event(ctx context.Context, p *nodev1.PodState, c corev1.PodCondition) {
	now := metav1.NewTime(w.now())
	_, err := w.api.Events(p.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: p.Name + ".", Namespace: p.Namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.Uid)},
		Type:           corev1.EventTypeWarning, Reason: c.Reason, Message: c.Message, FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: "conduit-controller"}}, metav1.CreateOptions{})
	if err != nil {
		w.log.Warn("event not written", "pod", p.Namespace+"/"+p.Name, "reason", c.Reason, "error", err.Error())
	}
}
