package preflight

import (
	"context"
	"slices"

	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// filters is about NetworkPolicies for pods of the mesh: two such pods on one node meet past all that filters packets, unless the
// proxies are told to link them.
func (p *population) filters(ctx context.Context, c *cluster.Cluster) Check {
	const d = "NetworkPolicies hold between pods of the mesh"
	policies, err := c.Client.NetworkingV1().NetworkPolicies(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen(d, err, "kubectl get networkpolicies -A")
	}
	agent, err := c.Client.AppsV1().DaemonSets(deploy.Namespace).Get(ctx, deploy.Agent, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return passed(d) // nobody proxies; other checks say that
	case err != nil:
		return unseen(d, err, "kubectl -n "+deploy.Namespace+" get daemonset "+deploy.Agent)
	case linksSameNode(&agent.Spec.Template.Spec):
		return passed(d)
	}
	meshed, lapsed := p.toBeMeshed(), []string(nil)
	for i := range policies.Items {
		policy := &policies.Items[i]
		selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
		if err != nil {
			return failed(d, policy.Namespace+"/"+policy.Name+": "+err.Error(), "kubectl -n "+policy.Namespace+" edit networkpolicy "+policy.Name)
		}
		if slices.ContainsFunc(meshed, func(pod *corev1.Pod) bool {
			return pod.Namespace == policy.Namespace && selector.Matches(labels.Set(pod.Labels))
		}) {
			lapsed = append(lapsed, policy.Namespace+"/"+policy.Name)
		}
	}
	if len(lapsed) == 0 {
		return passed(d)
	}
	return warned(d, "not where two of its pods are on one node, for proxy.sameNode is direct: "+some(lapsed, ", "),
		"conduit upgrade --set proxy.sameNode=link --apply --wait (docs/install.md, NetworkPolicies)")
}

func linksSameNode(spec *corev1.PodSpec) bool {
	return slices.ContainsFunc(spec.Containers, func(c corev1.Container) bool { return slices.Contains(c.Args, "--same-node=link") })
}
