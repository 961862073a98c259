package preflight

import (
	"context"
	"fmt"
	"slices"

	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/mesh"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// namedAtMost bounds the objects that a check names.
const namedAtMost = 5

// Installed finds out whether the Conduit of a cluster does its work.
func Installed(ctx context.Context, c *cluster.Cluster) Report {
	api, ok := reach(c)
	if !ok {
		return report([]Category{api})
	}
	if check, ok := installed(ctx, c); !ok {
		none := []Category{api, {"conduit-control-plane", []Check{check}}}
		if pods := aboutPods(ctx, c); slices.ContainsFunc(pods.Checks, func(c Check) bool { return c.mend != nil }) { // left by kubectl delete
			none = append(none, pods)
		}
		return report(none)
	}
	return report([]Category{api,
		{"conduit-control-plane", slices.Concat([]Check{definitions(c), controller(ctx, c), installedVersion(ctx, c)}, complete(ctx, c), []Check{admitted(ctx, c)})},
		aboutIdentity(ctx, c),
		{"conduit-agents", []Check{agents(ctx, c)}},
		onNodes(ctx, c),
		aboutPods(ctx, c),
	})
}

func definitions(c *cluster.Cluster) Check {
	const d = "Conduit's resources are defined"
	if _, err := c.Client.Discovery().ServerResourcesForGroupVersion(v1alpha1.Group + "/" + v1alpha1.Version); err != nil {
		return failed(d, err.Error(), "conduit install --apply")
	}
	return passed(d)
}

func controller(ctx context.Context, c *cluster.Cluster) Check {
	const d = "the controller is ready"
	o, err := c.Client.AppsV1().Deployments(deploy.Namespace).Get(ctx, deploy.Controller, metav1.GetOptions{})
	if err != nil {
		return unseen(d, err, "conduit install --apply --wait")
	}
	s := o.Status
	n := fmt.Sprintf("%d of %d replicas", s.AvailableReplicas, s.Replicas)
	switch {
	case s.AvailableReplicas == 0:
		return failed(d, firstOf(trouble(ctx, c, "controller"), n), describe("controller"))
	case s.AvailableReplicas < s.Replicas || s.UpdatedReplicas < s.Replicas:
		return warned(d, firstOf(trouble(ctx, c, "controller"), n), describe("controller"))
	}
	return passed(d + " (" + n + ")")
}

func describe(component string) string {
	return "kubectl -n " + deploy.Namespace + " describe pods -l app.kubernetes.io/component=" + component
}

// unseen is a check that could not be made. That its user has not the right to look is nobody's fault, and fails nothing.
func unseen(d string, err error, hint string) Check {
	if apierrors.IsForbidden(err) {
		return warned(d, "you may not look: "+err.Error(), "conduit check --context NAME, as an administrator of the cluster")
	}
	return failed(d, err.Error(), hint)
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// trouble is what the first pod of a component that is not ready says.
func trouble(ctx context.Context, c *cluster.Cluster, component string) string {
	pods, err := c.Client.CoreV1().Pods(deploy.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=conduit,app.kubernetes.io/component=" + component})
	if err != nil {
		return err.Error()
	}
	for i := range pods.Items {
		if why := cluster.Trouble(&pods.Items[i]); why != "" {
			return why
		}
	}
	return ""
}

func installedVersion(ctx context.Context, c *cluster.Cluster) Check {
	const d = "this program and the installation are of one version"
	r, there, err := c.Record(ctx)
	switch {
	case err != nil:
		return unseen(d, err, "conduit upgrade --apply")
	case !there:
		return warned(d, "there is no record of the installation: Helm or kubectl has made it", "helm -n "+deploy.Namespace+" list")
	case r.Version != mesh.Version():
		return warned(d, "this is "+mesh.Version()+", that is "+r.Version, "conduit upgrade --apply --wait")
	}
	return passed(d + " (" + r.Version + ")")
}

func agents(ctx context.Context, c *cluster.Cluster) Check {
	const d = "every node has an agent that is ready"
	o, err := c.Client.AppsV1().DaemonSets(deploy.Namespace).Get(ctx, deploy.Agent, metav1.GetOptions{})
	if err != nil {
		return unseen(d, err, "conduit install --apply --wait")
	}
	s := o.Status
	n := fmt.Sprintf("%d of %d", s.NumberAvailable, s.DesiredNumberScheduled)
	if s.NumberAvailable < s.DesiredNumberScheduled || s.DesiredNumberScheduled == 0 {
		return failed(d, firstOf(trouble(ctx, c, "agent"), n), describe("agent"))
	}
	return passed(d + " (" + n + ")")
}
