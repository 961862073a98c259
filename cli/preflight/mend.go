package preflight

import (
	"context"

	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Fix mends what the checks of r have found and can be mended without harm: nothing that works is restarted, replaced or taken
// away. say is told of everything that was done. It reports whether anything could be mended.
func (r Report) Fix(ctx context.Context, c *cluster.Cluster, say func(string)) (mended bool, err error) {
	for _, category := range r.Categories {
		for _, check := range category.Checks {
			if check.mend == nil {
				continue
			}
			if err := check.mend(ctx, c, say); err != nil {
				return mended, err
			}
			mended = true
		}
	}
	return mended, nil
}

// complete is about the objects of the installation that somebody has removed.
func complete(ctx context.Context, c *cluster.Cluster) Check {
	const d = "every object of the installation is there"
	missing, err := c.Missing(ctx)
	if err != nil {
		return failed(d, err.Error(), "conduit upgrade --apply --wait")
	}
	if len(missing) == 0 {
		return passed(d)
	}
	var names []string
	for _, o := range missing {
		names = append(names, cluster.Name(o))
	}
	check := failed(d, "missing: "+some(names, ", "), "conduit check --fix, which makes them as they were installed")
	check.mend = func(ctx context.Context, c *cluster.Cluster, say func(string)) error {
		for _, o := range missing {
			done, err := c.Apply(ctx, o, false)
			if err != nil {
				return err
			}
			say(cluster.Name(o) + " " + string(done))
		}
		return nil
	}
	return check
}

// admitted is about the label by which the namespace admits the agents' pods.
func admitted(ctx context.Context, c *cluster.Cluster) Check {
	const d = "the namespace " + deploy.Namespace + " admits agents"
	const want = "privileged"
	ns, err := c.Client.CoreV1().Namespaces().Get(ctx, deploy.Namespace, metav1.GetOptions{})
	if err != nil {
		return failed(d, err.Error(), "conduit install --apply --wait")
	}
	have := ns.Labels[enforceLabel]
	if have == want {
		return passed(d)
	}
	const hint = "conduit check --fix, or kubectl label --overwrite namespace " + deploy.Namespace + " " + enforceLabel + "=" + want
	check := failed(d, "its label "+enforceLabel+" is "+have+": pods of agents are refused when they are made anew", hint)
	if have == "" { // then the API server's own default decides
		check = warned(d, "it has no label "+enforceLabel+": a stricter default of the API server would refuse pods of agents", hint)
	}
	check.mend = func(ctx context.Context, c *cluster.Cluster, say func(string)) error {
		return c.LabelNamespace(ctx, enforceLabel, want, say)
	}
	return check
}

// leftOver is about conditions that no agent keeps true any more.
func leftOver(ctx context.Context, c *cluster.Cluster) Check {
	const d = "no pod has a condition that nobody keeps"
	nodes, there, err := c.AgentNodes(ctx)
	if err != nil {
		return warned(d, err.Error(), "kubectl get nodes")
	}
	if _, installed, err := c.Record(ctx); err != nil || installed && !there {
		return passed(d) // pods may well be enrolled while somebody has taken the agents away
	}
	kept := map[string]bool{}
	for i := range nodes {
		kept[nodes[i].Name] = true
	}
	pods, err := c.Client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return warned(d, err.Error(), "kubectl auth can-i list pods -A")
	}
	var left []corev1.Pod
	var names []string
	for i := range pods.Items {
		if p := &pods.Items[i]; cluster.HasCondition(p) && !kept[p.Spec.NodeName] {
			left, names = append(left, *p), append(names, p.Namespace+"/"+p.Name)
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
