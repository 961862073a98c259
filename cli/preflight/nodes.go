package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// onNodes is about the machines that agents run on, one by one, as the API server and the agents' own pods tell of them.
func onNodes(ctx context.Context, c *cluster.Cluster) Category {
	const name, d = "conduit-nodes", "the nodes can be looked at"
	nodes, there, err := c.AgentNodes(ctx)
	switch {
	case err != nil:
		return Category{name, []Check{unseen(d, err, "kubectl get nodes")}}
	case !there:
		return Category{name, []Check{failed(d, "there is no DaemonSet "+deploy.Agent, "conduit install --apply --wait")}}
	}
	list, err := c.Client.CoreV1().Pods(deploy.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=conduit,app.kubernetes.io/component=agent"})
	if err != nil {
		return Category{name, []Check{unseen(d, err, describe("agent"))}}
	}
	agents := map[string][]*corev1.Pod{} // by node; two while one takes over from the other
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp != nil {
			continue // what it was it is no more
		}
		agents[list.Items[i].Spec.NodeName] = append(agents[list.Items[i].Spec.NodeName], &list.Items[i])
	}
	logs := "kubectl -n " + deploy.Namespace + " logs daemonset/" + deploy.Agent
	return Category{name, []Check{
		kernels(nodes),
		// The agent starts only where its programs are loaded, attached and pinned.
		ofEach("the programs are loaded: BTF, cgroup2 and bpffs are there", nodes, logs+" -c agent", func(n *corev1.Node) string {
			return lacking(agents[n.Name], "agent", func(s *corev1.ContainerStatus) bool { return s.Started != nil && *s.Started })
		}),
		// It is ready while it finds the plugin's entry in the configuration that the runtime uses.
		ofEach("the CNI plugin is in the configuration", nodes, logs+" -c cni", func(n *corev1.Node) string {
			return lacking(agents[n.Name], "cni", func(s *corev1.ContainerStatus) bool { return s.Ready })
		}),
		ofEach("every agent says that its node is wired", nodes, logs+" -c agent", func(n *corev1.Node) string { return unwired(agents[n.Name]) }),
		ofEach("every agent renews its node's certificates", nodes, logs+" -c agent; docs/identity.md, Alarms", func(n *corev1.Node) string { return overdue(agents[n.Name]) }),
		clocks(ctx, c, nodes),
		taints(ctx, c, agents),
	}}
}

// ofEach is a check of every node: why says what is wrong with one; empty: nothing.
func ofEach(d string, nodes []corev1.Node, hint string, why func(*corev1.Node) string) Check {
	var bad []string
	for i := range nodes {
		if w := why(&nodes[i]); w != "" {
			bad = append(bad, nodes[i].Name+": "+w)
		}
	}
	if len(bad) > 0 {
		return failed(d, some(bad, "; "), hint)
	}
	return passed(fmt.Sprintf("%s (%d nodes)", d, len(nodes)))
}

// some is the first ones of a list, and how many more there are.
func some(list []string, separator string) string {
	n := len(list) - namedAtMost
	if n <= 0 {
		return strings.Join(list, separator)
	}
	return strings.Join(list[:namedAtMost], separator) + fmt.Sprintf("%sand %d more", separator, n)
}

// lacking is why the container is good in none of a node's agents.
func lacking(pods []*corev1.Pod, container string, good func(*corev1.ContainerStatus) bool) string {
	why := "it has no agent"
	for _, p := range pods {
		why = firstOf(cluster.Trouble(p), "container "+container+" is not ready")
		for i := range p.Status.ContainerStatuses {
			if s := &p.Status.ContainerStatuses[i]; s.Name == container && good(s) {
				return ""
			}
		}
	}
	return why
}

// unwired is why none of a node's agents says that the node is wired, in the agent's own words; empty: one does.
func unwired(pods []*corev1.Pod) string {
	why := "it has no agent"
	for _, p := range pods {
		if hasCondition(p, kube.ConditionWired) {
			return ""
		}
		why = firstOf(cluster.Unwired(p, ""), "its agent has told the controller nothing yet")
	}
	return why
}

// taints is about the taint that the controller takes off nodes whose agent works.
func taints(ctx context.Context, c *cluster.Cluster, agents map[string][]*corev1.Pod) Check {
	const d = "no node waits for its agent"
	nodes, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return warned(d, err.Error(), "kubectl get nodes")
	}
	var waiting, done []string
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if kube.Untaint(n) == nil {
			continue
		}
		waiting = append(waiting, n.Name)
		if slices.ContainsFunc(agents[n.Name], func(p *corev1.Pod) bool { return hasCondition(p, corev1.PodReady) }) {
			done = append(done, n.Name)
		}
	}
	if len(waiting) == 0 {
		return passed(d)
	}
	check := failed(d, "still tainted "+kube.TaintNotReady+": "+some(waiting, ", "), "kubectl -n "+deploy.Namespace+" logs daemonset/"+deploy.Agent+" -c agent")
	if len(done) > 0 {
		check.Hint = "conduit check --fix, which takes it off nodes whose agent is ready; kubectl -n " + deploy.Namespace + " logs deployment/" + deploy.Controller + " says why the controller has not"
		check.mend = func(ctx context.Context, c *cluster.Cluster, say func(string)) error {
			for _, name := range done {
				if err := c.Untaint(ctx, name, say); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return check
}

// hasCondition reports whether the pod has the condition, and it is true.
func hasCondition(p *corev1.Pod, kind corev1.PodConditionType) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == kind && c.Status == corev1.ConditionTrue })
}
