package cluster

import (
	"context"
	"fmt"
	"slices"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// AgentNodes is the nodes that agents shall run on; false: there is no DaemonSet of agents.
func (c *Cluster) AgentNodes(ctx context.Context) ([]corev1.Node, bool, error) {
	d, err := c.Client.AppsV1().DaemonSets(deploy.Namespace).Get(ctx, deploy.Agent, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, explain("read DaemonSet "+deploy.Agent, err)
	}
	list, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(d.Spec.Template.Spec.NodeSelector).String()})
	if err != nil {
		return nil, false, explain("list nodes", err)
	}
	return list.Items, true, nil
}

// HasController reports whether there is a Deployment of the controller.
func (c *Cluster) HasController(ctx context.Context) (bool, error) {
	_, err := c.Client.AppsV1().Deployments(deploy.Namespace).Get(ctx, deploy.Controller, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, explain("read Deployment "+deploy.Controller, err)
	}
	return true, nil
}

// Missing is what the recorded installation has made and somebody else has removed. It is known of an installation of this
// version only.
func (c *Cluster) Missing(ctx context.Context) (missing []*unstructured.Unstructured, known bool, err error) {
	r, there, err := c.Record(ctx)
	if err != nil || !there || r.Version != mesh.Version() {
		return nil, false, err
	}
	all, err := deploy.Installation(r.Values)
	if err != nil {
		return nil, false, err
	}
	for _, o := range all {
		kind, ok := deploy.KindOf(o)
		if !ok {
			continue
		}
		_, err := c.resource(kind, o.GetNamespace()).Get(ctx, o.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			missing = append(missing, o)
		case err != nil:
			return nil, false, explain("read "+Name(o), err)
		}
	}
	return missing, true, nil
}

// HasCondition reports whether the pod has a condition of Conduit's.
func HasCondition(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == kube.ConditionEnrolled })
}

// DropConditions takes Conduit's condition off pods, and says of how many.
func (c *Cluster) DropConditions(ctx context.Context, pods []corev1.Pod, say func(string)) error {
	patch := fmt.Appendf(nil, `{"status":{"conditions":[{"$patch":"delete","type":%q}]}}`, kube.ConditionEnrolled)
	n := 0
	for i := range pods {
		p := &pods[i]
		if !HasCondition(p) {
			continue
		}
		_, err := c.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager}, "status")
		if err != nil && !apierrors.IsNotFound(err) {
			return explain("take the condition off pod "+p.Namespace+"/"+p.Name, err)
		}
		n++
	}
	if n > 0 {
		say(fmt.Sprintf("condition %s of %d pods %s", kube.ConditionEnrolled, n, Removed))
	}
	return nil
}

// LabelNamespace sets a label of Conduit's own namespace.
func (c *Cluster) LabelNamespace(ctx context.Context, key, value string, say func(string)) error {
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, key, value)
	if _, err := c.Client.CoreV1().Namespaces().Patch(ctx, deploy.Namespace, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager}); err != nil {
		return explain("label namespace "+deploy.Namespace, err)
	}
	say("namespace " + deploy.Namespace + " labelled " + key + "=" + value)
	return nil
}
