package cluster

import (
	"context"
	"fmt"

	"conduit.io/conduit/deploy"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Outcome is what became of an object.
type Outcome string

// The outcomes.
const (
	Created   Outcome = "created"
	Changed   Outcome = "changed"
	Unchanged Outcome = "unchanged"
	Removed   Outcome = "removed"
)

// Name is how people name an object: kind and name.
func Name(o *unstructured.Unstructured) string { return o.GetKind() + " " + o.GetName() }

// Apply writes an object by server-side apply: fields that the object does not have stay as they are. Fields of other managers
// that contradict are taken over with force, and an error without.
func (c *Cluster) Apply(ctx context.Context, o *unstructured.Unstructured, force bool) (Outcome, error) {
	kind, ok := deploy.KindOf(o)
	if !ok {
		return "", fmt.Errorf("apply %s: no part of Conduit is of this kind", Name(o))
	}
	r := c.resource(kind, o.GetNamespace())
	before, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return "", explain("read "+Name(o), err)
	}
	fresh := err != nil
	after, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: FieldManager, Force: force})
	switch {
	case err != nil:
		return "", explain("apply "+Name(o), err)
	case fresh:
		return Created, nil
	case before.GetResourceVersion() == after.GetResourceVersion():
		return Unchanged, nil
	}
	return Changed, nil
}

// Prune removes what an older installation had and this one has not. done is called for each.
func (c *Cluster) Prune(ctx context.Context, keep []*unstructured.Unstructured, done func(*unstructured.Unstructured)) error {
	wanted := map[string]bool{}
	for _, o := range keep {
		wanted[o.GetNamespace()+"/"+Name(o)] = true
	}
	had, err := c.List(ctx, deploy.Owned)
	if err != nil {
		return err
	}
	for i := len(had) - 1; i >= 0; i-- {
		if o := had[i]; !wanted[o.GetNamespace()+"/"+Name(o)] {
			if err := c.remove(ctx, o); err != nil {
				return err
			}
			done(o)
		}
	}
	return nil
}

// List is every object of an installation's kinds that the selector selects, in the order of creation: those of the cluster, and those
// of Conduit's namespace.
func (c *Cluster) List(ctx context.Context, selector string) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	for _, k := range deploy.Kinds() {
		list, err := c.resource(k, deploy.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return nil, explain("list "+k.Resource.Resource, err)
		}
		for i := range list.Items {
			all = append(all, &list.Items[i])
		}
	}
	return all, nil
}

// Record is what the cluster remembers of its installation; false: there is none.
func (c *Cluster) Record(ctx context.Context) (deploy.Record, bool, error) {
	for _, k := range deploy.Kinds() {
		if k.Name != "ConfigMap" {
			continue
		}
		o, err := c.resource(k, deploy.Namespace).Get(ctx, deploy.RecordName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return deploy.Record{}, false, nil
		}
		if err != nil {
			return deploy.Record{}, false, explain("read ConfigMap "+deploy.RecordName, err)
		}
		r, err := deploy.ReadRecord(o)
		return r, true, err
	}
	panic("an installation has a ConfigMap") // TestKindsAndLabels of deploy
}

func (c *Cluster) remove(ctx context.Context, o *unstructured.Unstructured) error {
	kind, ok := deploy.KindOf(o)
	if !ok {
		return fmt.Errorf("remove %s: no part of Conduit is of this kind", Name(o))
	}
	uid := o.GetUID() // one that was made anew meanwhile is somebody else's
	how := metav1.DeletePropagationBackground
	err := c.resource(kind, o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &how, Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("remove "+Name(o), err)
	}
	return nil
}
