package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"conduit.io/conduit/api/kube"

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
