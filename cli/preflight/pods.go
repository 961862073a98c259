package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// population is everybody who can be in the mesh, and what is said of them.
type population struct {
	namespaces []corev1.Namespace
	pods       []corev1.Pod
	policy     cluster.Policy
}

// aboutPods is about the pods of the cluster.
func aboutPods(ctx context.Context, c *cluster.Cluster) Category {
	const name, d = "conduit-pods", "the pods can be looked at"
	var p population
	namespaces, err := c.Client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return Category{name, []Check{unseen(d, err, "kubectl get namespaces -L "+kube.LabelMesh)}}
	}
	pods, err := c.Client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return Category{name, []Check{unseen(d, err, "kubectl get pods -A")}}
	}
	if p.policy, err = c.Policy(ctx); err != nil && !apierrors.IsForbidden(err) { // without it labels are believed
		return Category{name, []Check{unseen(d, err, "kubectl get meshpolicy "+v1alpha1.MeshPolicyName+" -o yaml")}}
	}
	p.namespaces, p.pods = namespaces.Items, pods.Items
	return Category{name, []Check{p.meshed(), p.spelling(), p.leftOver(ctx, c), p.filters(ctx, c)}}
}

// toBeMeshed are the running pods that are to be in the mesh by what they and their namespaces say.
func (p *population) toBeMeshed() (pods []*corev1.Pod) {
	says := map[string]kube.Said{}
	for i := range p.namespaces {
		says[p.namespaces[i].Name] = kube.Says(&p.namespaces[i])
	}
	for i := range p.pods {
		pod := &p.pods[i]
		if pod.Status.Phase == corev1.PodRunning && !pod.Spec.HostNetwork && kube.Settle(kube.Says(pod), says[pod.Namespace], nil).Meshed {
			pods = append(pods, pod)
		}
	}
	return pods
}

// meshed is about what the kernel is seen to do with the pods that are to be in the mesh.
func (p *population) meshed() Check {
	const d = "every pod of the mesh is enrolled"
	labelled, bad := p.toBeMeshed(), []string(nil)
	for _, pod := range labelled {
		if why := outside(pod); why != "" {
			bad = append(bad, pod.Namespace+"/"+pod.Name+" ("+why+")")
		}
	}
	switch {
	case p.policy.Enrolment == v1alpha1.EnrolmentNone:
		return failed(d, fmt.Sprintf("none of %d is, whatever labels say: %s", len(labelled), p.policy.None()), p.policy.Undo())
	case len(bad) == 0:
		return passed(fmt.Sprintf("%s (%d)", d, len(labelled)))
	}
	return failed(d, some(bad, ", "), "kubectl -n NAMESPACE describe pod NAME")
}

// outside is why a pod is not enrolled; empty: it is.
func outside(p *corev1.Pod) string {
	for _, cond := range p.Status.Conditions {
		if cond.Type == kube.ConditionEnrolled {
			if cond.Status == corev1.ConditionTrue {
				return ""
			}
			return strings.TrimSuffix(cond.Reason+": "+cond.Message, ": ")
		}
	}
	return "no agent has reported it"
}

// spelling is about labels and annotations that do not mean what was meant. Those that are like none of Conduit's may be somebody
// else's, and fail nothing.
func (p *population) spelling() Check {
	const d = "labels and annotations for Conduit are spelt as it knows them"
	var all []string
	failing := false
	note := func(who string, o metav1.Object) {
		for _, s := range kube.Slips(o) {
			failing = failing || s.Nearest != "" || kube.Known(s.Key)
			if text := who + " has the " + s.String(); !slices.Contains(all, text) {
				all = append(all, text)
			}
		}
	}
	for i := range p.namespaces {
		note("namespace "+p.namespaces[i].Name, &p.namespaces[i])
	}
	for i := range p.pods {
		pod := &p.pods[i]
		if kube.Ended(pod) {
			continue
		}
		who := "pod " + pod.Namespace + "/" + pod.Name
		if owner := kube.Owner(pod); owner != "" { // all of its pods have it of one template
			who = "a pod of " + owner + " in " + pod.Namespace
		}
		note(who, pod)
	}
	const next = "kubectl label or annotate what is named, or its template; docs/mesh.md has all of them"
	switch {
	case len(all) == 0:
		return passed(d)
	case failing:
		return failed(d, some(all, "\n      "), next)
	}
	return warned(d, some(all, "\n      "), next)
}

// leftOver is about conditions that no agent keeps true any more.
func (p *population) leftOver(ctx context.Context, c *cluster.Cluster) Check {
	const d = "no pod has a condition that nobody keeps"
	nodes, there, err := c.AgentNodes(ctx)
	if err != nil {
		return unseen(d, err, "kubectl get nodes")
	}
	if _, installed, err := c.Record(ctx); err != nil || installed && !there {
		return passed(d) // pods may well be enrolled while somebody has taken the agents away
	}
	kept := map[string]bool{}
	for i := range nodes {
		kept[nodes[i].Name] = true
	}
	var left []corev1.Pod
	var names []string
	for i := range p.pods {
		if pod := &p.pods[i]; cluster.HasCondition(pod) && !kept[pod.Spec.NodeName] {
			left, names = append(left, *pod), append(names, pod.Namespace+"/"+pod.Name)
		}
	}
	if len(left) == 0 {
		return passed(d)
	}
	check := failed(d, "on nodes that no agent is for: "+some(names, ", "), "conduit check --fix, which takes them off")
	check.mend = func(ctx context.Context, c *cluster.Cluster, say func(string)) error {
		return c.DropConditions(ctx, left, say)
	}
	return check
}

// installed reports whether there is anything of an installation that works or was meant to; if not, the check says so.
func installed(ctx context.Context, c *cluster.Cluster) (Check, bool) {
	const d = "Conduit is installed"
	_, recorded, err := c.Record(ctx)
	if err != nil || recorded {
		return Check{}, true
	}
	if _, agents, err := c.AgentNodes(ctx); err != nil || agents {
		return Check{}, true
	}
	if found, err := c.HasController(ctx); err != nil || found {
		return Check{}, true
	}
	return failed(d, "this cluster has none: no record of an installation, no "+deploy.Controller+", no "+deploy.Agent, "conduit check --pre && conduit install --apply --wait"), false
}
