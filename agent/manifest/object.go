// Package manifest reads Kubernetes objects from a directory of YAML and JSON files, strictly, and watches it. What a
// bad file said before it went bad stays in force; the other files are followed.
package manifest

import (
	"cmp"
	"fmt"
	"strings"

	"conduit.io/conduit/api/v1alpha1"

	corev1 "k8s.io/api/core/v1"
)

// Objects is everything that the manifests say. It is immutable.
type Objects struct {
	Namespaces map[string]*corev1.Namespace // by name
	Pods       map[Name]*corev1.Pod
	Services   map[Name]*corev1.Service
	Policy     *v1alpha1.MeshPolicy // nil: none
}

// Name names a namespaced object.
type Name struct {
	Namespace string
	Name      string
}

// String is namespace/name.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders by namespace, and then by name.
func (n Name) Compare(o Name) int {
	return cmp.Or(strings.Compare(n.Namespace, o.Namespace), strings.Compare(n.Name, o.Name))
}

// Fault is one thing wrong with a manifest.
type Fault struct {
	File    string
	Line    int    // 0: the file as a whole
	Field   string // path such as spec.ports[0].port; may be empty
	Message string
}

// String is FILE:LINE: FIELD: MESSAGE.
func (f Fault) String() string {
	s := f.File
	if f.Line > 0 {
		s = fmt.Sprintf("%s:%d", s, f.Line)
	}
	if f.Field != "" {
		s += ": " + f.Field
	}
	return s + ": " + f.Message
}

// object is one decoded document.
type object struct {
	kind string
	name Name // Namespace empty for cluster-scoped kinds
	line int
	body any
}

func (o *object) String() string {
	if o.name.Namespace == "" {
		return o.kind + " " + o.name.Name
	}
	return o.kind + " " + o.name.String()
}

type objectKey struct {
	kind string
	name Name
}

func (o *object) key() objectKey { return objectKey{o.kind, o.name} }

func collectObjects(all []*object) *Objects {
	out := &Objects{
		Namespaces: map[string]*corev1.Namespace{},
		Pods:       map[Name]*corev1.Pod{},
		Services:   map[Name]*corev1.Service{},
	}
	for _, o := range all {
		switch body := o.body.(type) {
		case *corev1.Namespace:
			out.Namespaces[o.name.Name] = body
		case *corev1.Pod:
			out.Pods[o.name] = body
		case *corev1.Service:
			out.Services[o.name] = body
		case *v1alpha1.MeshPolicy:
			out.Policy = body
		}
	}
	return out
}
