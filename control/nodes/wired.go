package nodes

import (
	"cmp"
	"context"
	"errors"
	"time"

	"conduit.io/conduit/api/kube"
	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/control/access"

	corev1 "k8s.io/api/core/v1"
)

// goneAfter is how long an agent may be away before its pod's condition says so: streams end when replicas of the controller do, and
// agents are back within seconds.
const goneAfter = 10 * time.Second

// wire brings up to date what Kubernetes shows of the node itself.
func (w *Writer) wire(ctx context.Context, node string) error {
	return errors.Join(w.taint(ctx, node), w.tell(ctx, node))
}

// tell writes the condition conduit.io/Wired of the agent's pod: what the agent says of its node, with its own reason, or that nothing is
// heard of it.
func (w *Writer) tell(ctx context.Context, node string) error {
	n, pod := w.r.Get(node, false), w.r.Agent(node)
	if n == nil || pod == (access.Pod{}) {
		return nil
	}
	if n.State == nodev1.Node_STATE_AWAY && !w.known.Node(node) {
		w.r.Forget(node)
		return nil
	}
	if err := w.replaced(ctx, node, pod); err != nil {
		return err
	}
	since := n.Since.AsTime()
	if left := goneAfter - w.now().Sub(since); n.State == nodev1.Node_STATE_AWAY && left > 0 {
		w.after(node, kube.ConditionWired, left)
		return nil
	}
	if _, at := w.known.Condition(pod.Namespace, pod.Name, pod.UID, kube.ConditionWired); at == "" && !n.Connected {
		return nil // it went before its node
	}
	var s wish
	switch n.State {
	case nodev1.Node_STATE_AWAY:
		s = wired(pod, corev1.ConditionUnknown, "AgentAway", "the controller hears nothing of the agent since "+since.UTC().Format(time.RFC3339))
	case nodev1.Node_STATE_SILENT: // as it was, until it says something or its stream ends
		return nil
	case nodev1.Node_STATE_READY:
		s = wired(pod, corev1.ConditionTrue, cmp.Or(n.Agent.GetReason(), kube.ReasonWired), n.Agent.GetMessage())
	default:
		s = wired(pod, corev1.ConditionFalse, cmp.Or(n.Agent.GetReason(), "NotReady"), n.Agent.GetMessage())
	}
	s.since = since
	return w.put(ctx, node, s)
}

// replaced takes note of the pod that the node's agent runs in. The one that it ran in before is no longer what it was.
func (w *Writer) replaced(ctx context.Context, node string, pod access.Pod) error {
	w.mu.Lock()
	before := w.agents[node]
	w.mu.Unlock()
	if before == pod {
		return nil
	}
	if _, at := w.known.Condition(before.Namespace, before.Name, before.UID, kube.ConditionWired); at != "" {
		s := wired(before, corev1.ConditionFalse, "Replaced", "the agent of pod "+pod.Name+" has taken over")
		s.alarming = func(corev1.PodCondition) bool { return false }
		if err := w.put(ctx, node, s); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.agents[node] = pod
	delete(w.written[node], subject{before.UID, kube.ConditionWired})
	return nil
}

// wired is a wish about conduit.io/Wired. People are told when it was true, and when it is and something is wrong all the same.
func wired(pod access.Pod, status corev1.ConditionStatus, reason, message string) wish {
	return wish{pod: pod, kind: kube.ConditionWired,
		want: corev1.PodCondition{Type: kube.ConditionWired, Status: status, Reason: reason, Message: message},
		alarming: func(have corev1.PodCondition) bool {
			if status == corev1.ConditionTrue {
				return reason != kube.ReasonWired && reason != have.Reason
			}
			return have.Status == corev1.ConditionTrue
		}}
}
