package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/deploy"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// Uninstall removes everything of Conduit from the cluster and from its nodes, and verifies it: first the agents, which would repair
// what is taken away; then what they have left on the nodes; then what the controller has written on nodes and pods, while
// nobody writes it anew; the rest last. say is told of every step. What an interrupted one has left is removed by the next.
func (c *Cluster) Uninstall(ctx context.Context, say func(string)) error {
	d, err := c.agents(ctx)
	if err != nil {
		return explain("read DaemonSet "+deploy.Agent, err)
	}
	had, err := c.List(ctx, deploy.PartOf)
	if err != nil {
		return err
	}
	if len(had) == 0 {
		say("nothing of Conduit is on the cluster; where kubectl or Helm has removed it, nodes still have the plugin, and start no pods: conduit install --apply --wait, and uninstall once more")
		return nil
	}
	nodes, err := c.nodesOf(ctx, d)
	if err != nil {
		return err
	}
	if err := c.removeAll(ctx, had, "DaemonSet", say); err != nil {
		return err
	}
	if err := c.gone(ctx, "agent"); err != nil {
		return err
	}
	// Without the Namespace there are no agents, and no place for pods that clean.
	if slices.ContainsFunc(had, func(o *unstructured.Unstructured) bool { return o.GetNamespace() == deploy.Namespace }) {
		if err := c.clean(ctx, nodes, d, say); err != nil {
			return err
		}
	}
	if err := c.removeAll(ctx, had, "Deployment", say); err != nil {
		return err
	}
	if err := c.gone(ctx, "controller"); err != nil {
		return err
	}
	if err := c.unwrite(ctx, nodes, say); err != nil {
		return err
	}
	if err := c.removeKept(ctx); err != nil {
		return err
	}
	if err := c.removeAll(ctx, had, "", say); err != nil {
		return err
	}
	if err := c.releaseNamespace(ctx, had, say); err != nil {
		return err
	}
	return c.verify(ctx, len(nodes), say)
}

// removeAll removes the objects of a kind, or (empty) of all kinds that have not been removed yet, the last one first. The Namespace
// is not for it.
func (c *Cluster) removeAll(ctx context.Context, objects []*unstructured.Unstructured, kind string, say func(string)) error {
	for _, o := range slices.Backward(objects) {
		switch o.GetKind() {
		case "Namespace":
			continue
		case "DaemonSet", "Deployment":
			if kind == "" {
				continue // each has had its turn
			}
		}
		if kind != "" && o.GetKind() != kind {
			continue
		}
		if err := c.remove(ctx, o); err != nil {
			return err
		}
		say(Name(o) + " " + string(Removed))
	}
	return nil
}

// removeKept removes what the controller keeps for itself, for a Namespace that stays: the issuer that it made, and the Lease.
func (c *Cluster) removeKept(ctx context.Context) error {
	const made = "app.kubernetes.io/part-of=conduit,app.kubernetes.io/managed-by=conduit-controller" // by controllers of before the mark, too
	core := c.Client.CoreV1()
	err := core.Secrets(deploy.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: made})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("remove the issuer", err)
	}
	err = core.ConfigMaps(deploy.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: made})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("remove the trust bundle", err)
	}
	err = c.Client.CoordinationV1().Leases(deploy.Namespace).Delete(ctx, deploy.Controller, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("remove Lease "+deploy.Controller, err)
	}
	return nil
}

// gone waits until no pod of a component is left.
func (c *Cluster) gone(ctx context.Context, component string) error {
	left := ""
	err := await(ctx, func(string) {}, func(ctx context.Context) (string, bool, error) {
		list, err := c.Client.CoreV1().Pods(deploy.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=conduit,app.kubernetes.io/component=" + component})
		if err != nil {
			return "", false, err
		}
		for i := range list.Items {
			left = list.Items[i].Name + " on node " + list.Items[i].Spec.NodeName
		}
		return "", len(list.Items) == 0, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return &output.Problem{What: "pod " + left + " does not end in time", Cause: "its node may be down",
			Next: "kubectl delete node NODE, if it does not come back; then conduit uninstall --apply once more"}
	}
	return err
}

// unwrite takes back what the controller has written on objects of others: the condition of pods, and the taint of nodes, which
// nobody would take off any more.
func (c *Cluster) unwrite(ctx context.Context, nodes []string, say func(string)) error {
	pods, err := c.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return explain("list pods", err)
	}
	if err := c.DropConditions(ctx, pods.Items, say); err != nil {
		return err
	}
	for _, name := range nodes {
		if err := c.Untaint(ctx, name, say); err != nil {
			return err
		}
	}
	return nil
}

// Untaint takes Conduit's taint off a node, if it has it, and says so.
func (c *Cluster) Untaint(ctx context.Context, name string, say func(string)) error {
	for {
		n, err := c.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return explain("read node "+name, err)
		}
		patch := kube.Untaint(n)
		if patch == nil {
			return nil
		}
		_, err = c.Client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager})
		switch {
		case err == nil:
			say("taint " + kube.TaintNotReady + " of node " + name + " " + string(Removed))
			return nil
		case !apierrors.IsConflict(err): // else somebody else has changed the node: once more
			return explain("take the taint off node "+name, err)
		}
	}
}

// verify waits until nothing of Conduit is left on the cluster.
func (c *Cluster) verify(ctx context.Context, nodes int, say func(string)) error {
	left := ""
	err := await(ctx, func(string) {}, func(ctx context.Context) (string, bool, error) {
		all, err := c.List(ctx, deploy.PartOf)
		if err != nil {
			return "", false, err
		}
		var names []string
		for _, o := range all {
			names = append(names, Name(o))
		}
		left = strings.Join(names, ", ")
		return "", len(all) == 0, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return &output.Problem{What: "not everything is gone in time", Cause: "still there: " + left, Next: "conduit uninstall --apply once more"}
	}
	if err != nil {
		return err
	}
	say(fmt.Sprintf("verified: %d nodes clean, 0 objects left", nodes))
	return nil
}
