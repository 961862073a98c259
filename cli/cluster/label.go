package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/cli/output"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Target is what can be put into the mesh: a namespace, or a pod.
type Target struct {
	Namespace string
	Pod       string // empty: the whole namespace
}

// ParseTarget reads "ns/NAME" or "pod/NAME", with the long and short names that kubectl has for the kinds.
func ParseTarget(arg, namespace string) (Target, error) {
	kind, name, ok := strings.Cut(arg, "/")
	if !ok || name == "" || strings.Contains(name, "/") {
		return Target{}, fmt.Errorf("%q: want ns/NAME or pod/NAME", arg)
	}
	switch kind {
	case "ns", "namespace", "namespaces":
		return Target{Namespace: name}, nil
	case "po", "pod", "pods":
		return Target{Namespace: namespace, Pod: name}, nil
	case "deploy", "deployment", "deployments", "sts", "statefulset", "ds", "daemonset", "job", "cronjob":
		return Target{}, fmt.Errorf("%q: label the namespace, or %s in the template of its pods, with %s: %s", arg, name, kube.LabelMesh, kube.Enabled)
	}
	return Target{}, fmt.Errorf("%q: want ns/NAME or pod/NAME", arg)
}

// String is as users write it.
func (t Target) String() string {
	if t.Pod == "" {
		return "ns/" + t.Namespace
	}
	return t.Namespace + "/" + t.Pod
}

// Label is the value that the target's label is to have; empty: none. A pod leaves the mesh of its namespace only by saying so.
func (t Target) Label(meshed bool) string {
	switch {
	case meshed:
		return kube.Enabled
	case t.Pod != "":
		return kube.Disabled
	}
	return ""
}

// Command is what sets the label with kubectl.
func (t Target) Command(meshed bool) string {
	what, set := "namespace "+t.Namespace, kube.LabelMesh+"-"
	if t.Pod != "" {
		if what = "pod " + t.Pod; t.Namespace != "" { // else the context's
			what = "-n " + t.Namespace + " " + what
		}
	}
	if v := t.Label(meshed); v != "" {
		set = "--overwrite " + kube.LabelMesh + "=" + v
	}
	return "kubectl label " + what + " " + set
}

// SetMesh sets the label.
func (c *Cluster) SetMesh(ctx context.Context, t Target, meshed bool) error {
	var value any // null removes it
	if v := t.Label(meshed); v != "" {
		value = v
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{kube.LabelMesh: value}}})
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: FieldManager}
	if t.Pod == "" {
		_, err = c.Client.CoreV1().Namespaces().Patch(ctx, t.Namespace, types.MergePatchType, patch, options)
	} else {
		_, err = c.Client.CoreV1().Pods(t.Namespace).Patch(ctx, t.Pod, types.MergePatchType, patch, options)
	}
	if err != nil {
		return explain("label "+t.String(), err)
	}
	return nil
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
		done, all, leaving := 0, 0, 0
		for i := range list {
			p := &list[i]
			if p.Spec.HostNetwork || p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil || t.Pod == "" && p.Labels[kube.LabelMesh] != "" {
				continue
			}
			all++
			in, refused := enrolled(p)
			if isLeaving(p) {
				leaving++
			}
			if meshed && refused != "" {
				return "", false, &output.Problem{What: "pod " + p.Namespace + "/" + p.Name + " is not enrolled", Cause: refused,
					Next: "kubectl -n " + p.Namespace + " describe pod " + p.Name}
			}
			if in == meshed {
				done++
			}
		}
		verb := "enrolled"
		if !meshed {
			verb = "out of the mesh"
		}
		state = fmt.Sprintf("%s: %d of %d pods %s", t, done, all, verb)
		if leaving > 0 {
			state += fmt.Sprintf("; %d have connections that go on until they end", leaving)
		}
		return state, done == all, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return &output.Problem{What: "not in time: " + state, Cause: "an agent is not ready, or the controller does not know of it", Next: "conduit check"}
	}
	return err
}

func (c *Cluster) pods(ctx context.Context, t Target) ([]corev1.Pod, error) {
	if t.Pod != "" {
		p, err := c.Client.CoreV1().Pods(t.Namespace).Get(ctx, t.Pod, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return []corev1.Pod{*p}, nil
	}
	list, err := c.Client.CoreV1().Pods(t.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
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
			"Pending", "NoNetwork": // as long as the agent has not found it
			return false, ""
		}
		return false, strings.TrimSpace(c.Reason + ": " + c.Message)
	}
	return false, ""
}
