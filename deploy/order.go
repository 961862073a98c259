package deploy

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Kind is a kind of objects that an installation has.
type Kind struct {
	Name     string
	Resource schema.GroupVersionResource
	Cluster  bool // its objects are in no namespace
}

const rbac = "rbac.authorization.k8s.io"

// kinds are in the order of creation: what others need comes first.
var kinds = []Kind{
	{"Namespace", schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, true},
	{"CustomResourceDefinition", schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}, true},
	{"ServiceAccount", schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, false},
	{"ClusterRole", schema.GroupVersionResource{Group: rbac, Version: "v1", Resource: "clusterroles"}, true},
	{"ClusterRoleBinding", schema.GroupVersionResource{Group: rbac, Version: "v1", Resource: "clusterrolebindings"}, true},
	{"Role", schema.GroupVersionResource{Group: rbac, Version: "v1", Resource: "roles"}, false},
	{"RoleBinding", schema.GroupVersionResource{Group: rbac, Version: "v1", Resource: "rolebindings"}, false},
	{"ConfigMap", schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, false},
	{"Service", schema.GroupVersionResource{Version: "v1", Resource: "services"}, false},
	{"PodDisruptionBudget", schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}, false},
	{"Deployment", schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, false},
	{"DaemonSet", schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}, false},
}

// Kinds are those of the objects of an installation, in the order in which they can be created.
func Kinds() []Kind { return slices.Clone(kinds) }

// KindOf finds an object's kind.
func KindOf(o *unstructured.Unstructured) (Kind, bool) {
	i := rank(o.GetKind())
	if i < 0 {
		return Kind{}, false
	}
	return kinds[i], true
}

func rank(kind string) int {
	return slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == kind })
}

func sorted(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	slices.SortFunc(objects, func(a, b *unstructured.Unstructured) int {
		return cmp.Or(cmp.Compare(rank(a.GetKind()), rank(b.GetKind())), cmp.Compare(a.GetName(), b.GetName()))
	})
	return objects
}
