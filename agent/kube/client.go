package kube

import (
	"conduit.io/conduit/api/v1alpha1"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// types are those that the agent decodes: the client of all of Kubernetes' groups would cost it several megabytes.
var types = newTypes()

func newTypes() *runtime.Scheme {
	s := runtime.NewScheme()
	s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Pod{}, &corev1.PodList{}, &corev1.Namespace{}, &corev1.NamespaceList{})
	own := schema.GroupVersion{Group: v1alpha1.Group, Version: v1alpha1.Version}
	s.AddKnownTypeWithName(own.WithKind("MeshPolicy"), &meshPolicy{})
	s.AddKnownTypeWithName(own.WithKind("MeshPolicyList"), &meshPolicyList{})
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	metav1.AddToGroupVersion(s, own)
	return s
}

// Requests that a client makes in a second, and at once. A pod that starts before the watch has told of it costs one (Find), and many may
// start at once: client-go's own bound, 5 in a second, would hold them up for seconds.
const (
	perSecond = 50
	atOnce    = 200
)

// clients speak to one API server.
type clients struct{ core, conduit rest.Interface }

func connect(cfg *rest.Config) (*clients, error) {
	codecs := serializer.NewCodecFactory(types)
	client := func(path, contentType string, gv schema.GroupVersion) (rest.Interface, error) {
		c := rest.CopyConfig(cfg)
		c.APIPath, c.GroupVersion = path, &gv
		c.QPS, c.Burst = perSecond, atOnce
		c.NegotiatedSerializer = codecs.WithoutConversion()
		c.ContentType, c.AcceptContentTypes = contentType, contentType+",application/json"
		return rest.RESTClientFor(c)
	}
	core, err := client("/api", "application/vnd.kubernetes.protobuf", corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	own, err := client("/apis", "application/json", schema.GroupVersion{Group: v1alpha1.Group, Version: v1alpha1.Version})
	return &clients{core, own}, err
}

// meshPolicy is a MeshPolicy as the machinery of caches wants it.
type meshPolicy struct{ v1alpha1.MeshPolicy }

// DeepCopyObject implements runtime.Object.
func (p *meshPolicy) DeepCopyObject() runtime.Object {
	out := &meshPolicy{p.MeshPolicy}
	p.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}

// meshPolicyList is what a list request answers.
type meshPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []meshPolicy `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (l *meshPolicyList) DeepCopyObject() runtime.Object {
	out := &meshPolicyList{TypeMeta: l.TypeMeta, ListMeta: l.ListMeta, Items: make([]meshPolicy, len(l.Items))}
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*meshPolicy)
	}
	out.RemainingItemCount = clonePtr(l.RemainingItemCount)
	return out
}

func clonePtr(p *int64) *int64 {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}
