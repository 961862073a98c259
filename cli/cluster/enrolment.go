package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/cli/output"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Serves says why a label would put no pod into the mesh: Conduit is not there. Who may not look is told nothing.
func (c *Cluster) Serves(ctx context.Context) error {
	controller, err := c.HasController(ctx)
	if err == nil && !controller {
		var agents bool
		if _, agents, err = c.AgentNodes(ctx); err == nil && !agents {
			return &output.Problem{What: "Conduit is not installed on this cluster", Cause: "nothing would come of the label, and it was not set: " + c.Host, Next: "conduit install --apply --wait"}
		}
	}
	if apierrors.IsForbidden(err) {
		return nil
	}
	return err
}

// Nobody says why nobody is in the mesh whatever labels say; nil: that is not so, or may not be seen.
func (c *Cluster) Nobody(ctx context.Context) error {
	p, err := c.Policy(ctx)
	switch {
	case apierrors.IsForbidden(err):
		return nil
	case err != nil || p.Enrolment != v1alpha1.EnrolmentNone:
		return err
	}
	return &output.Problem{What: "nobody is in the mesh, whatever labels say", Cause: p.None(), Next: p.Undo()}
}

// AwaitMesh waits until the kernel is seen to steer all pods of the target that run, or (not meshed) none of them. Pods that are
// refused are an error: waiting will not help.
func (c *Cluster) AwaitMesh(ctx context.Context, t Target, meshed bool, say func(string)) error {
	state := ""
	err := await(ctx, say, func(ctx context.Context) (string, bool, error) {
		list, err := c.pods(ctx, t)
		if err != nil {
			return "", false, err
		}
		var n tally
		for i := range list {
			if err := n.add(t, &list[i], meshed); err != nil {
				return "", false, err
			}
		}
		state = n.say(t, meshed)
		return state, n.done == n.all && (n.all > 0 || t.Pod == ""), nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return &output.Problem{What: "not in time: " + state, Cause: "an agent is not ready, or the controller does not know of it", Next: "conduit check"}
	}
	return err
}

// tally counts the pods of a target: all that run and are to be as it says, those that are, and those that have connections left.
type tally struct{ all, done, leaving int }

// add counts a pod. It is an error if the pod will never be in the mesh.
func (n *tally) add(t Target, p *corev1.Pod, meshed bool) error {
	refusal := &output.Problem{What: "pod " + p.Namespace + "/" + p.Name + " is not enrolled", Next: "kubectl -n " + p.Namespace + " describe pod " + p.Name}
	switch {
	case t.Pod != "" && meshed && p.Spec.HostNetwork:
		refusal.Cause = hostNetwork
		return refusal
	case t.Pod != "" && kube.Ended(p):
		refusal.What, refusal.Cause = "pod "+p.Namespace+"/"+p.Name+" has ended", "its containers will not run again"
		return refusal
	case p.Spec.HostNetwork || p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil || t.Pod == "" && otherwise(p, meshed):
		return nil
	}
	n.all++
	in, refused := enrolled(p)
	if isLeaving(p) {
		n.leaving++
	}
	if meshed && refused != "" {
		refusal.Cause = refused
		return refusal
	}
	if in == meshed {
		n.done++
	}
	return nil
}

func (n *tally) say(t Target, meshed bool) string {
	if n.all == 0 {
		switch {
		case t.Pod != "":
			return t.String() + ": it does not run yet"
		case meshed:
			return t.String() + ": no pod runs in it; those that start will be in the mesh"
		}
		return t.String() + ": no pod runs in it"
	}
	verb := "enrolled"
	if !meshed {
		verb = "out of the mesh"
	}
	state := fmt.Sprintf("%s: %d of %d pods %s", t, n.done, n.all, verb)
	if n.leaving > 0 {
		state += fmt.Sprintf("; %d have connections that go on until they end", n.leaving)
	}
	return state
}

// hostNetwork is why a pod is never in the mesh.
const hostNetwork = "it is on its node's network, and cannot be told from the node"

// otherwise reports whether the pod's own label says something else than its namespace's.
func otherwise(p *corev1.Pod, meshed bool) bool {
	own := kube.Says(p).Mesh
	return own != "" && (own == kube.Enabled) != meshed
}

// Exceptions says which running pods of a namespace are not as the namespace's label says, and why.
func (c *Cluster) Exceptions(ctx context.Context, t Target, meshed bool, say func(string)) error {
	if t.Pod != "" {
		return nil
	}
	list, err := c.pods(ctx, t)
	if apierrors.IsForbidden(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var labelled, onHost []string
	for i := range list {
		switch p := &list[i]; {
		case p.Status.Phase != corev1.PodRunning:
		case p.Spec.HostNetwork:
			onHost = append(onHost, p.Name)
		case otherwise(p, meshed):
			labelled = append(labelled, p.Name)
		}
	}
	if meshed && len(onHost) > 0 {
		say("not in the mesh: " + named(onHost, ", which is on its node's network", ", which are on their nodes' network"))
	}
	if len(labelled) > 0 {
		where, command := "still in the mesh: ", "unmesh"
		if meshed {
			where, command = "not in the mesh: ", "mesh"
		}
		say(where + named(labelled, ", by its own label", ", by their own label") + "; conduit " + command + " pod/" + strings.Join(labelled[:min(len(labelled), fewest)], " pod/") +
			" -n " + t.Namespace + " --apply")
	}
	return nil
}

// named is pods by their names, with what is said of one or of several.
func named(pods []string, one, several string) string {
	if len(pods) == 1 {
		return "pod " + pods[0] + one
	}
	return "pods " + few(pods) + several
}

func (c *Cluster) pods(ctx context.Context, t Target) ([]corev1.Pod, error) {
	if t.Pod != "" {
		p, err := c.Client.CoreV1().Pods(t.Namespace).Get(ctx, t.Pod, metav1.GetOptions{})
		if err != nil {
			return nil, explain("read pod "+t.String(), err)
		}
		return []corev1.Pod{*p}, nil
	}
	list, err := c.Client.CoreV1().Pods(t.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, explain("list the pods of "+t.String(), err)
	}
	return list.Items, nil
}

// reasonLeaving is the condition's of a pod that is not in the mesh any more, and has connections that are.
const reasonLeaving = "Leaving"

func isLeaving(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == kube.ConditionEnrolled && c.Reason == reasonLeaving
	})
}

// enrolled is what the pod's condition says: whether it is enrolled, and why it is refused.
func enrolled(p *corev1.Pod) (in bool, refused string) {
	for _, c := range p.Status.Conditions {
		if c.Type != kube.ConditionEnrolled {
			continue
		}
		if c.Status == corev1.ConditionTrue {
			return true, ""
		}
		switch c.Reason {
		case reasonLeaving, // nothing new of it is steered
			"Pending", "NoNetwork", // as long as the agent has not found it
			"OptedOut": // of before: its label does not say so now
			return false, ""
		}
		return false, strings.TrimSpace(c.Reason + ": " + c.Message)
	}
	return false, ""
}
