package cli

import (
	"strings"
	"testing"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/deploy"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// older: an installation of a version that did not mark its objects is not taken for somebody else's, nor for none.
func (s *stage) older(t *testing.T) {
	objects, err := deploy.Installation(nil)
	must(t, objects, err)
	unmark := []byte(`{"metadata":{"labels":{"` + kube.LabelInstallation + `":null}}}`)
	for _, o := range objects {
		kind, _ := deploy.KindOf(o)
		r := kind.Resource
		path := []string{"/apis", r.Group, r.Version}
		if r.Group == "" {
			path = []string{"/api", r.Version}
		}
		if o.GetNamespace() != "" {
			path = append(path, "namespaces", o.GetNamespace())
		}
		if err := s.client.RESTClient().Patch(types.MergePatchType).AbsPath(append(path, r.Resource, o.GetName())...).Body(unmark).Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	// What its controller has made; that of now does not mark it, and the uninstall at the end must find it.
	kept := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "conduit-issuer", Labels: map[string]string{"app.kubernetes.io/part-of": "conduit",
		"app.kubernetes.io/managed-by": "conduit-controller"}}}
	kept, err = s.client.CoreV1().Secrets(deploy.Namespace).Create(t.Context(), kept, metav1.CreateOptions{})
	must(t, kept, err)
	_, errOut := s.conduit(ExitError, "uninstall", "--apply", "--drain", "0s", "--timeout", "20s")
	if !strings.Contains(errOut, "its objects do not say that they are Conduit's") || !strings.Contains(errOut, "next:  conduit upgrade --apply") {
		t.Errorf("uninstall: %s", errOut)
	}
	s.conduit(ExitOK, "upgrade", "--apply")
	var ns *corev1.Namespace
	if ns, err = s.client.CoreV1().Namespaces().Get(t.Context(), deploy.Namespace, metav1.GetOptions{}); !deploy.Ours(must(t, ns, err)) {
		t.Errorf("after the upgrade: %v", ns.Labels)
	}
}
