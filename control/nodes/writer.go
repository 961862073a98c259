package nodes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"conduit.io/conduit/api/kube"
	nodev1 "conduit.io/conduit/api/nodev1"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/workqueue"
)

// Writer writes what agents report where Kubernetes shows it: the pods' condition conduit.io/Enrolled, Events of pods that
// are refused or bypassed, and the taint that keeps pods off nodes without an agent. Only the leader runs one.
type Writer struct {
	api   corev1client.CoreV1Interface
	r     *Registry
	known Known
	log   *slog.Logger
	now   func() time.Time

	mu      sync.Mutex
	queue   workqueue.TypedRateLimitingInterface[string] // nil: it does not run
	written map[string]map[string]corev1.PodCondition    // by node and UID of the pod; Type empty: none
	wired   map[string]string                            // by node, the life of the agent for which the taint was seen to be off
}

// Known is what the cache of pods says of their condition.
type Known interface {
	// Enrolled is the condition's status, "" for none; false: there is no such pod.
	Enrolled(namespace, name, uid string) (corev1.ConditionStatus, bool)
}

// again is when to look again whether a pod has been seen.
const again = 2 * time.Second

// NewWriter makes a Writer; call Run, and Changed for every node of which something has changed.
func NewWriter(api corev1client.CoreV1Interface, r *Registry, known Known, log *slog.Logger) *Writer {
	return &Writer{api: api, r: r, known: known, log: log, now: time.Now}
}

// Changed has the node looked at soon, if w runs.
func (w *Writer) Changed(node string) { w.after(node, 0) }

func (w *Writer) after(node string, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queue != nil {
		w.queue.AddAfter(node, d)
	}
}

// Run writes until ctx ends, a few nodes at a time. It may be called again.
func (w *Writer) Run(ctx context.Context) {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second))
	w.mu.Lock()
	w.queue, w.written, w.wired = queue, map[string]map[string]corev1.PodCondition{}, map[string]string{}
	w.mu.Unlock()
	for _, node := range w.r.Names() {
		queue.Add(node)
	}
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for {
				node, end := queue.Get()
				if end {
					return
				}
				if err := w.write(ctx, node); err != nil && ctx.Err() == nil {
					w.log.Warn("state of a node not written; trying again", "node", node, "error", err.Error())
					queue.AddRateLimited(node)
				} else {
					queue.Forget(node)
				}
				queue.Done(node)
			}
		})
	}
	<-ctx.Done()
	w.mu.Lock()
	w.queue = nil
	w.mu.Unlock()
	queue.ShutDown()
	workers.Wait()
}

// write brings one node up to date. What fails is tried again with all that is left.
func (w *Writer) write(ctx context.Context, name string) error {
	n := w.r.Get(name, true)
	if n == nil {
		return nil
	}
	var first error
	note := func(err error) {
		if err != nil && first == nil {
			first = err
		}
	}
	note(w.taint(ctx, n))
	there := make(map[string]bool, len(n.Pods))
	for _, p := range n.Pods {
		there[p.Uid] = true
		note(w.pod(ctx, name, p))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for uid := range w.written[name] {
		if !there[uid] {
			delete(w.written[name], uid)
		}
	}
	return first
}

// taint takes the taint off a node whose agent is ready: once in the agent's life, and again after it was not ready.
func (w *Writer) taint(ctx context.Context, n *nodev1.Node) error {
	w.mu.Lock()
	life, off := w.wired[n.Name]
	if !n.Connected || !n.Agent.GetReady() {
		delete(w.wired, n.Name)
	}
	w.mu.Unlock()
	if !n.Connected || !n.Agent.GetReady() || off && life == n.Agent.GetInstance() {
		return nil
	}
	if err := w.untaint(ctx, n.Name); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wired[n.Name] = n.Agent.GetInstance()
	return nil
}

func (w *Writer) untaint(ctx context.Context, name string) error {
	n, err := w.api.Nodes().Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"}) // the API server's cache will do
	if apierrors.IsNotFound(err) {
		w.r.Forget(name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the node: %w", err)
	}
	patch := kube.Untaint(n)
	if patch == nil {
		return nil
	}
	if _, err = w.api.Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("take the taint off: %w", err)
	}
	w.log.Info("node is wired: taint taken off", "node", name)
	return nil
}

// wanted is the condition that p should have; Type empty: none.
func (w *Writer) wanted(p *nodev1.PodState) corev1.PodCondition {
	c := corev1.PodCondition{Type: kube.ConditionEnrolled, Status: corev1.ConditionFalse, Reason: p.Reason, Message: p.Message,
		ObservedGeneration: p.ObservedGeneration, LastTransitionTime: metav1.NewTime(w.now())}
	if p.Since.IsValid() {
		c.LastTransitionTime = metav1.NewTime(p.Since.AsTime())
	}
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

// pod writes p's condition if it differs from what was written, or, after a change of the leader, from what the cache says.
func (w *Writer) pod(ctx context.Context, node string, p *nodev1.PodState) error {
	status, there := w.known.Enrolled(p.Namespace, p.Name, p.Uid)
	if !there { // not seen yet; or gone, and soon the agent says so
		w.after(node, again)
		return nil
	}
	c := w.wanted(p)
	w.mu.Lock()
	last, ok := w.written[node][p.Uid]
	w.mu.Unlock()
	if ok && same(c, last) && status == c.Status || !ok && c.Type == "" && status == "" {
		return nil
	}
	var entry any = c
	if c.Type == "" {
		entry = map[string]any{"$patch": "delete", "type": kube.ConditionEnrolled}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.Uid}, "status": map[string]any{"conditions": []any{entry}}})
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
		w.written[node] = map[string]corev1.PodCondition{}
	}
	w.written[node][p.Uid] = c
	w.mu.Unlock()
	if alarming(p) && (!ok || last.Reason != c.Reason) {
		w.event(ctx, p, c)
	}
	return nil
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
