package nodes

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"conduit.io/conduit/api/kube"
	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/control/access"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// wish is a condition that a pod should have.
type wish struct {
	pod   access.Pod
	kind  corev1.PodConditionType
	want  corev1.PodCondition // without its times; Type empty: none
	since time.Time           // when its status became what it is; zero: now
	// alarming tells from the condition that the pod has whether people are to be told by an Event.
	alarming func(have corev1.PodCondition) bool
}

// enrolment is what p says about conduit.io/Enrolled.
func enrolment(p *nodev1.PodState) wish {
	s := wish{pod: access.Pod{Namespace: p.Namespace, Name: p.Name, UID: p.Uid}, kind: kube.ConditionEnrolled, want: wanted(p)}
	if p.Since.IsValid() {
		s.since = p.Since.AsTime()
	}
	bad := p.Enrolment == nodev1.PodState_ENROLMENT_REFUSED || p.Enrolment == nodev1.PodState_ENROLMENT_BYPASSED
	s.alarming = func(have corev1.PodCondition) bool { return bad && have.Reason != s.want.Reason }
	return s
}

// put writes what s wants if it differs from what the cache says, and from what was written a moment ago.
func (w *Writer) put(ctx context.Context, node string, s wish) error {
	have, at := w.known.Condition(s.pod.Namespace, s.pod.Name, s.pod.UID, s.kind)
	switch at {
	case node:
	case "": // not seen yet; or gone, and soon the agent says so
		w.after(node, s.kind, again)
		return nil
	default: // an agent speaks for its own node, and for no other
		w.foreign.Add(1)
		if w.told.First(node, w.now()) {
			w.log.Warn("an agent reports a pod of another node; the same is not logged again for a while", "agent", node,
				"pod", s.pod.Namespace+"/"+s.pod.Name, "node", at)
		}
		return nil
	}
	about := subject{s.pod.UID, s.kind}
	w.mu.Lock()
	last, ok := w.written[node][about]
	if ok && (same(have, last.PodCondition) || w.now().Sub(last.at) >= echo) { // seen; or undone by somebody
		delete(w.written[node], about)
		ok = false
	}
	w.mu.Unlock()
	if ok {
		have = last.PodCondition
		w.after(node, s.kind, echo)
	}
	if same(s.want, have) {
		return nil
	}
	patch, err := w.patch(s, have)
	if err != nil {
		return err
	}
	api := w.client(s.kind)
	_, err = api.Pods(s.pod.Namespace).Patch(ctx, s.pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // another pod has the name by now
		return nil
	}
	if err != nil {
		return fmt.Errorf("write the condition %s of %s/%s: %w", s.kind, s.pod.Namespace, s.pod.Name, err)
	}
	w.mu.Lock()
	if w.written[node] == nil {
		w.written[node] = map[subject]written{}
	}
	w.written[node][about] = written{s.want, w.now()}
	w.mu.Unlock()
	if s.alarming(have) {
		w.event(ctx, api, s)
	}
	return nil
}

// client is by whom conditions of the kind are written.
func (w *Writer) client(kind corev1.PodConditionType) corev1client.CoreV1Interface {
	if kind == kube.ConditionWired {
		return w.nodes
	}
	return w.api
}

// patch puts what s wants in the place of have. While the status stays the same, so does the time since when.
func (w *Writer) patch(s wish, have corev1.PodCondition) ([]byte, error) {
	entry, c := map[string]any{"type": s.kind}, s.want
	if c.Type == "" {
		entry["$patch"] = "delete"
	} else {
		entry["status"], entry["reason"], entry["message"], entry["observedGeneration"] = c.Status, c.Reason, c.Message, c.ObservedGeneration
		if have.Status != c.Status {
			since := s.since
			if since.IsZero() {
				since = w.now()
			}
			entry["lastTransitionTime"] = metav1.NewTime(since)
		}
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"uid": s.pod.UID}, "status": map[string]any{"conditions": []any{entry}}})
}

// event tells people. One that cannot be written is logged: the condition says the same.
func (w *Writer) event(ctx context.Context, api corev1client.CoreV1Interface, s wish) {
	now := metav1.NewTime(w.now())
	_, err := api.Events(s.pod.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: s.pod.Name + ".", Namespace: s.pod.Namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: s.pod.Namespace, Name: s.pod.Name, UID: types.UID(s.pod.UID)},
		Type:           corev1.EventTypeWarning, Reason: s.want.Reason, Message: s.want.Message, FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: "conduit-controller"}}, metav1.CreateOptions{})
	if err != nil {
		w.log.Warn("event not written", "pod", s.pod.Namespace+"/"+s.pod.Name, "reason", s.want.Reason, "error", err.Error())
	}
}
