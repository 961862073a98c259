package preflight

import (
	"context"

	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"

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

// complete is about the objects of the installation that somebody has removed. It is none where nobody knows what they were.
func complete(ctx context.Context, c *cluster.Cluster) []Check {
	const d = "every object of the installation is there"
	missing, known, err := c.Missing(ctx)
	switch {
	case err != nil:
		return []Check{unseen(d, err, "conduit upgrade --apply --wait")}
	case !known:
		return nil
	case len(missing) == 0:
		return []Check{passed(d)}
	}
	var names []string
	for _, o := range missing {
		names = append(names, cluster.Name(o))
	}
	if policy, err := c.Policy(ctx); err == nil && policy.Uninstalling() { // what is made now, it takes away again
		return []Check{failed(d, "missing: "+some(names, ", ")+"; "+policy.None(), policy.Undo())}
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
	return []Check{check}
}

// admitted is about the label by which the namespace admits the agents' pods.
func admitted(ctx context.Context, c *cluster.Cluster) Check {
	const d = "the namespace " + deploy.Namespace + " admits agents"
	const want = "privileged"
	ns, err := c.Client.CoreV1().Namespaces().Get(ctx, deploy.Namespace, metav1.GetOptions{})
	if err != nil {
		return unseen(d, err, "conduit install --apply --wait")
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
