// Package v1alpha1 has the Go types of Conduit's own kinds of Kubernetes objects, conduit.io/v1alpha1. Their schemas are
// in deploy/crds. Values read from a cache are shared: do not change them.
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Group and Version of everything in this package.
const (
	Group   = "conduit.io"
	Version = "v1alpha1"
)

// MeshPolicyName is the name of the only MeshPolicy there is.
const MeshPolicyName = "default"

// MeshPolicy is the cluster-wide default. It is cluster-scoped, there is one, and its name is MeshPolicyName.
type MeshPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              MeshPolicySpec `json:"spec"`
}

// MeshPolicySpec are the defaults; empty fields leave Conduit's own.
type MeshPolicySpec struct {
	MTLS      MTLS   `json:"mtls"`
	AgentDown string `json:"agentDown"` // Closed or Open; empty: Closed when STRICT, Open when PERMISSIVE
	Enrolment string `json:"enrolment"` // EnrolmentLabelled (default) or EnrolmentNone
}

// Who is in the mesh.
const (
	EnrolmentLabelled = "Labelled" // what labels say
	EnrolmentNone     = "None"     // nobody, whatever labels say; connections are asked to end, as their protocols allow
)

// MTLS says what inbound connections must be.
type MTLS struct {
	Mode string `json:"mode"` // PERMISSIVE (default) or STRICT
}

// MeshPolicyList is a list of them.
type MeshPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []MeshPolicy `json:"items"`
}

// DeepCopyObject is runtime.Object's.
func (p *MeshPolicy) DeepCopyObject() runtime.Object {
	out := *p
	out.ObjectMeta = *p.ObjectMeta.DeepCopy()
	return &out
}

// DeepCopyObject is runtime.Object's.
func (l *MeshPolicyList) DeepCopyObject() runtime.Object {
	out := *l
	out.ListMeta = *l.ListMeta.DeepCopy()
	out.Items = make([]MeshPolicy, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*MeshPolicy)
	}
	return &out
}
