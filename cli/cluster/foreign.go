package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/deploy"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Foreign is what the cluster has under the names of these objects, and does not bear Conduit's mark, nor was applied by a version
// that had none: somebody else has made it.
func (c *Cluster) Foreign(ctx context.Context, objects []*unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	var foreign []*unstructured.Unstructured
	for _, o := range objects {
		kind, ok := deploy.KindOf(o)
		if !ok {
			continue
		}
		have, err := c.resource(kind, o.GetNamespace()).Get(ctx, o.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, explain("read "+Name(o), err)
		case !deploy.Ours(have) && !applied(have):
			foreign = append(foreign, have)
		}
	}
	return foreign, nil
}

// Claim is what of these objects is to be applied. A Namespace that somebody else has made is used as it is; any other object of
// somebody else's is an error, so that nothing of theirs is changed, and nothing of it is removed later as if it were Conduit's.
func (c *Cluster) Claim(ctx context.Context, objects []*unstructured.Unstructured, say func(string)) ([]*unstructured.Unstructured, error) {
	foreign, err := c.Foreign(ctx, objects)
	if err != nil {
		return nil, err
	}
	var names, remove []string
	claimed := slices.Clone(objects)
	for _, o := range foreign {
		if o.GetKind() == "Namespace" {
			say("Namespace " + o.GetName() + " is somebody else's: it is used as it is, and uninstall leaves it")
			claimed = slices.DeleteFunc(claimed, func(mine *unstructured.Unstructured) bool { return mine.GetKind() == "Namespace" })
			continue
		}
		names = append(names, Name(o))
		remove = append(remove, deletion(o))
	}
	if len(names) > 0 {
		return nil, &output.Problem{What: "somebody else has made " + strings.Join(names, ", "),
			Cause: "Conduit's objects bear the label " + deploy.PartOf + ", and these do not; nothing was applied",
			Next:  strings.Join(remove, "; ") + ", if nobody needs them; then the same command again"}
	}
	return claimed, nil
}

// deletion is the command that removes an object.
func deletion(o *unstructured.Unstructured) string {
	command := "kubectl "
	if o.GetNamespace() != "" {
		command += "-n " + o.GetNamespace() + " "
	}
	return command + "delete " + strings.ToLower(o.GetKind()) + " " + o.GetName()
}

// collected is how long the garbage collector may take with what belonged to objects that are gone.
const collected = 10 * time.Second

// releaseNamespace removes the Namespace of an installation, if nothing is in it that the installation has not made. Else it stays,
// without Conduit's labels.
func (c *Cluster) releaseNamespace(ctx context.Context, had []*unstructured.Unstructured, say func(string)) error {
	i := slices.IndexFunc(had, func(o *unstructured.Unstructured) bool { return o.GetKind() == "Namespace" })
	if i < 0 {
		return nil // somebody else's, or gone
	}
	ns := had[i]
	var others []string
	wait, cancel := context.WithTimeout(ctx, collected)
	defer cancel()
	var unseen error
	_ = await(wait, func(string) {}, func(ctx context.Context) (string, bool, error) {
		var dependent bool
		others, dependent, unseen = c.others(ctx, ns.GetName())
		return "", !dependent, unseen
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch {
	case unseen != nil:
		say("Namespace " + ns.GetName() + " stays: what else is in it cannot be seen: " + unseen.Error())
	case len(others) > 0:
		say("Namespace " + ns.GetName() + " stays: Conduit has not made " + few(others))
	default:
		if err := c.remove(ctx, ns); err != nil {
			return err
		}
		say(Name(ns) + " " + string(Removed))
		return nil
	}
	return c.unmark(ctx, ns)
}

// unmark takes Conduit's labels off a Namespace that stays. What its pods may do is left as it is.
func (c *Cluster) unmark(ctx context.Context, ns *unstructured.Unstructured) error {
	gone := kube.LabelMesh + `":null,"` + kube.LabelInstallation
	for key := range ns.GetLabels() {
		if strings.HasPrefix(key, "app.kubernetes.io/") {
			gone += `":null,"` + key
		}
	}
	patch := []byte(`{"metadata":{"labels":{"` + gone + `":null}}}`)
	_, err := c.Client.CoreV1().Namespaces().Patch(ctx, ns.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("take Conduit's labels off "+Name(ns), err)
	}
	return nil
}

// others is what is in the namespace beside Conduit's own and what Kubernetes makes in every one. dependent says that some of it
// belongs to another object, and may be about to go.
func (c *Cluster) others(ctx context.Context, namespace string) (names []string, dependent bool, err error) {
	lists, err := c.Client.Discovery().ServerPreferredNamespacedResources()
	if err != nil {
		return nil, false, err
	}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, false, err
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || echoes[schema.GroupResource{Group: gv.Group, Resource: r.Name}] {
				continue
			}
			found, err := c.dynamic.Resource(gv.WithResource(r.Name)).Namespace(namespace).List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil, false, fmt.Errorf("list %s: %w", r.Name, err)
			}
			for i := range found.Items {
				if o := &found.Items[i]; !deploy.Ours(o) && !everywhere(r.Kind, o.GetName()) && o.GetDeletionTimestamp() == nil {
					names = append(names, r.Kind+" "+o.GetName())
					dependent = dependent || len(o.GetOwnerReferences()) > 0
				}
			}
		}
	}
	return names, dependent, nil
}

// echoes are resources that tell of others, and are nobody's property.
var echoes = map[schema.GroupResource]bool{
	{Resource: "endpoints"}: true, {Resource: "events"}: true, {Group: "events.k8s.io", Resource: "events"}: true, {Group: "metrics.k8s.io", Resource: "pods"}: true,
}

// everywhere reports whether Kubernetes makes the object in every namespace.
func everywhere(kind, name string) bool {
	return kind == "ConfigMap" && name == "kube-root-ca.crt" || kind == "ServiceAccount" && name == corev1.NamespaceDefault
}

// few is the first ones of a list, and how many more there are.
func few(names []string) string {
	if len(names) <= fewest {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:fewest], ", "), len(names)-fewest)
}

// fewest is how many objects are named.
const fewest = 5
