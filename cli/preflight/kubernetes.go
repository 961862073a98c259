package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"

	authzv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/version"
)

// minKubernetes is the first version in which a container can say that AppArmor is not to confine it.
const minKubernetes = "1.30.0"

// maxSkew is how far clocks may be apart: certificates are dated back by more.
const maxSkew = 30 * time.Second

// Before finds out whether Conduit can be installed on a cluster.
func Before(ctx context.Context, c *cluster.Cluster) Report {
	api, ok := reach(c)
	if !ok {
		return report([]Category{api})
	}
	return report([]Category{api,
		{"conduit-permissions", []Check{mayInstall(ctx, c)}},
		{"conduit-namespace", []Check{namespaceFree(ctx, c), namesFree(ctx, c)}},
		nodes(ctx, c),
	})
}

// reach is about the API server; false: there is no use in asking it more.
func reach(c *cluster.Cluster) (Category, bool) {
	d := "the API server answers (" + c.Host + ")"
	got, err := c.Client.Discovery().ServerVersion()
	if err != nil {
		return Category{"kubernetes-api", []Check{failed(d, err.Error(), "kubectl cluster-info")}}, false
	}
	out := []Check{passed(d)}
	d = "Kubernetes is " + strings.TrimSuffix(minKubernetes, ".0") + " or newer"
	v, err := version.ParseGeneric(got.GitVersion)
	switch {
	case err != nil:
		out = append(out, warned(d, fmt.Sprintf("cannot read its version %q", got.GitVersion), "kubectl version"))
	case v.LessThan(version.MustParseGeneric(minKubernetes)):
		out = append(out, failed(d, "this is "+got.GitVersion, "upgrade the cluster"))
	default:
		out = append(out, passed(d+" ("+got.GitVersion+")"))
	}
	return Category{"kubernetes-api", out}, true
}

// mayInstall asks whether the user may do what install does.
func mayInstall(ctx context.Context, c *cluster.Cluster) Check {
	const d = "you may create everything that Conduit is"
	var missing []string
	for _, k := range deploy.Kinds() {
		for _, verb := range []string{"create", "patch"} { // server-side apply is both
			a := &authzv1.ResourceAttributes{Verb: verb, Group: k.Resource.Group, Version: k.Resource.Version, Resource: k.Resource.Resource}
			if !k.Cluster {
				a.Namespace = deploy.Namespace
			}
			r, err := c.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx,
				&authzv1.SelfSubjectAccessReview{Spec: authzv1.SelfSubjectAccessReviewSpec{ResourceAttributes: a}}, metav1.CreateOptions{})
			if err != nil {
				return failed(d, err.Error(), "kubectl auth whoami")
			}
			if !r.Status.Allowed {
				missing = append(missing, verb+" "+k.Resource.Resource)
			}
		}
	}
	if len(missing) > 0 {
		return failed(d, "you may not "+strings.Join(missing, ", "), "ask an administrator of the cluster, or use their context: conduit check --pre --context NAME")
	}
	return passed(d)
}

// enforceLabel is of the admission of Pod Security Standards.
const enforceLabel = "pod-security.kubernetes.io/enforce"

func namespaceFree(ctx context.Context, c *cluster.Cluster) Check {
	const d = "the namespace " + deploy.Namespace + " is free, or Conduit's"
	ns, err := c.Client.CoreV1().Namespaces().Get(ctx, deploy.Namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return passed(d)
	case err != nil:
		return failed(d, err.Error(), "kubectl get namespace "+deploy.Namespace)
	case ns.DeletionTimestamp != nil:
		return failed(d, "it is being removed", "kubectl wait --for=delete namespace/"+deploy.Namespace)
	case deploy.Ours(ns):
		return passed(d)
	case ns.Labels[enforceLabel] != "" && ns.Labels[enforceLabel] != "privileged":
		return failed(d, "it admits no pods that use the node's network, as agents do", "kubectl label --overwrite namespace "+deploy.Namespace+" "+enforceLabel+"=privileged")
	}
	return warned(d, "somebody else has made it; uninstall will leave it", "kubectl get namespace "+deploy.Namespace+" -o yaml")
}

// namesFree is about objects of other people under the names of Conduit's.
func namesFree(ctx context.Context, c *cluster.Cluster) Check {
	const d = "no object of somebody else's has a name that Conduit needs"
	objects, err := deploy.Installation(map[string]any{"controller": map[string]any{"replicas": int64(2)}}) // with a disruption budget
	if err != nil {
		return failed(d, err.Error(), "conduit install")
	}
	objects = slices.DeleteFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "Namespace" }) // namespaceFree looks
	foreign, err := c.Foreign(ctx, objects)
	if err != nil {
		return warned(d, err.Error(), "conduit check --pre --context NAME, as an administrator of the cluster")
	}
	if len(foreign) == 0 {
		return passed(d)
	}
	var names []string
	for _, o := range foreign {
		names = append(names, cluster.Name(o))
	}
	return failed(d, "install would refuse, for "+some(names, ", "), "kubectl delete them, if nobody needs them; Conduit's own bear the label "+deploy.PartOf)
}

// nodes is about the machines, as far as the API server tells of them.
func nodes(ctx context.Context, c *cluster.Cluster) Category {
	const name = "nodes"
	list, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/os=linux"})
	if err != nil {
		return Category{name, []Check{failed("the nodes can be listed", err.Error(), "kubectl get nodes")}}
	}
	if len(list.Items) == 0 {
		return Category{name, []Check{failed("there is a node that runs Linux", "there is none", "kubectl get nodes -L kubernetes.io/os")}}
	}
	var away []string
	for i := range list.Items {
		if !nodeReady(&list.Items[i]) {
			away = append(away, list.Items[i].Name)
		}
	}
	const ready = "all nodes are ready"
	checks := []Check{kernels(list.Items), passed(ready), clocks(ctx, c, list.Items)}
	if len(away) > 0 {
		checks[1] = warned(ready, "not ready: "+some(away, ", "), "kubectl describe node "+away[0])
	}
	return Category{name, checks}
}

func kernels(nodes []corev1.Node) Check {
	d := fmt.Sprintf("all kernels are %d.%d or newer", minMajor, minMinor)
	return ofEach(d, nodes, "upgrade these nodes, or leave them out with --set agent.nodeSelector", func(n *corev1.Node) string {
		if release := n.Status.NodeInfo.KernelVersion; oldKernel(release) {
			return release
		}
		return ""
	})
}

func oldKernel(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false // nothing is known
	}
	return major < minMajor || major == minMajor && minor < minMinor
}

func nodeReady(n *corev1.Node) bool {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// clocks compares the times at which ready nodes have renewed their Leases with this machine's time.
func clocks(ctx context.Context, c *cluster.Cluster, nodes []corev1.Node) Check {
	d := fmt.Sprintf("clocks agree within %v", maxSkew)
	leases, err := c.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).List(ctx, metav1.ListOptions{})
	if err != nil {
		return warned(d, "the nodes' Leases cannot be read: "+err.Error(), "kubectl -n "+corev1.NamespaceNodeLease+" get leases")
	}
	ready := map[string]bool{}
	for i := range nodes {
		ready[nodes[i].Name] = nodeReady(&nodes[i])
	}
	now := time.Now()
	for _, l := range leases.Items {
		if l.Spec.RenewTime == nil || !ready[l.Name] {
			continue
		}
		// A kubelet renews every 10 s.
		if off := l.Spec.RenewTime.Sub(now); off > maxSkew || off < -10*time.Second-maxSkew {
			return warned(d, fmt.Sprintf("the Lease of node %s was renewed %v from now by this machine's clock", l.Name, off.Round(time.Second)),
				"timedatectl timesync-status, there and here")
		}
	}
	return passed(d)
}
