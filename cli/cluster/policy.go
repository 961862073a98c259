package cluster

import (
	"context"
	"slices"

	"conduit.io/conduit/api/v1alpha1"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Policy is what the MeshPolicy says of who is in the mesh. The zero value: there is none, and labels say it.
type Policy struct {
	Enrolment string
	dissolved bool // by an uninstall
}

// Policy reads it.
func (c *Cluster) Policy(ctx context.Context) (Policy, error) {
	o, err := c.dynamic.Resource(policies).Get(ctx, v1alpha1.MeshPolicyName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Policy{}, nil
	}
	if err != nil {
		return Policy{}, explain("read MeshPolicy "+v1alpha1.MeshPolicyName, err)
	}
	p := Policy{dissolved: slices.ContainsFunc(o.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool { return f.Manager == dissolver })}
	p.Enrolment, _, err = unstructured.NestedString(o.Object, "spec", "enrolment")
	return p, err
}

// Uninstalling reports whether an uninstall has begun, and has not ended.
func (p Policy) Uninstalling() bool { return p.Enrolment == v1alpha1.EnrolmentNone && p.dissolved }

// None is why nobody is in the mesh.
func (p Policy) None() string {
	if p.Uninstalling() {
		return "an uninstall has begun, and has set enrolment: None in the MeshPolicy"
	}
	return "the MeshPolicy says enrolment: None"
}

// Undo is the command that puts pods into the mesh again.
func (p Policy) Undo() string {
	if p.Uninstalling() {
		return "conduit uninstall --apply, to finish it, or conduit upgrade --apply --wait, to give it up"
	}
	return "kubectl patch meshpolicy " + v1alpha1.MeshPolicyName + ` --type merge -p '{"spec":{"enrolment":"Labelled"}}'`
}
