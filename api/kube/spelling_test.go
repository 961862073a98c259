package kube

import (
	"fmt"
	"strings"
	"testing"

	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What is misspelt is told with what was meant, and with what holds instead.
func TestSlips(t *testing.T) {
	for _, tc := range []struct {
		field, key, value string
		pod               bool
		want              string // empty: it is right, or nothing of Conduit's
	}{
		{label, LabelMesh, "enabled", false, ""},
		{label, LabelInstallation, "conduit", false, ""},
		{annotation, AnnotationMode, "STRICT", true, ""},
		{label, "app.kubernetes.io/mesh", "on", true, ""},
		{label, "mesh", "enable", true, ""},
		{annotation, "conductor.io/mode", "x", true, ""},
		{label, LabelMesh, "enable", false, `label conduit.io/mesh: "enable" is neither enabled nor disabled, did you mean enabled? In force: the namespace is not in the mesh.`},
		{label, LabelMesh, "no", true, `"no" is neither enabled nor disabled, did you mean disabled? In force: what its namespace says.`},
		{label, LabelMesh, "blue", true, `"blue" is neither enabled nor disabled. In force`},
		{label, LabelMesh, "", true, `"" is neither`},
		{annotation, AnnotationMode, "strict", false, `did you mean STRICT? In force: STRICT, plaintext is refused.`},
		{annotation, AnnotationMode, "bogus", true, `is neither PERMISSIVE nor STRICT. In force: STRICT`},
		{annotation, AnnotationMode, "PERMISIVE", true, `did you mean PERMISSIVE? In force: STRICT`},
		{annotation, AnnotationMode, "", false, `In force: as if it were not there.`},
		{annotation, AnnotationDown, "open", true, `did you mean Open? In force: Closed, without a proxy connections are refused.`},
		{annotation, "conduit.io/mtls-mod", "STRICT", false, `annotation conduit.io/mtls-mod: "STRICT" is none of Conduit's, did you mean conduit.io/mtls-mode? In force: as if it were not there.`},
		{annotation, "conduit.io/mtls", "STRICT", false, `did you mean conduit.io/mtls-mode?`},
		{annotation, "condiut.io/mtls-mode", "STRICT", false, `did you mean conduit.io/mtls-mode?`},
		{label, "conduit.oi/mesh", "enabled", false, `did you mean conduit.io/mesh?`},
		{label, "conduit.io/Mesh", "enabled", false, `did you mean conduit.io/mesh?`},
		{annotation, LabelMesh, "enabled", false, `means nothing there, did you mean the label conduit.io/mesh?`},
		{label, AnnotationMode, "STRICT", false, `means nothing there, did you mean the annotation conduit.io/mtls-mode?`},
		{annotation, "conduit.io/team", "x", false, `is none of Conduit's. In force: as if it were not there.`},
	} {
		meta := metav1.ObjectMeta{}
		if said := map[string]string{tc.key: tc.value}; tc.field == label {
			meta.Labels = said
		} else {
			meta.Annotations = said
		}
		var o metav1.Object = &corev1.Namespace{ObjectMeta: meta}
		if tc.pod {
			o = &corev1.Pod{ObjectMeta: meta}
		}
		got := Slips(o)
		switch {
		case tc.want == "" && len(got) > 0:
			t.Errorf("%s %s=%q: %v, want nothing", tc.field, tc.key, tc.value, got)
		case tc.want != "" && (len(got) != 1 || !strings.Contains(got[0].String(), tc.want)):
			t.Errorf("%s %s=%q: %v, want %s", tc.field, tc.key, tc.value, got, tc.want)
		}
	}
}

// A word that nobody knows opens nothing: of the mTLS mode and of what holds without a proxy the closed one is in force, and a pod
// does not leave the mesh of its namespace by it.
func TestUnknownWords(t *testing.T) {
	says := func(meshed, mode, down string) Said {
		return Says(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{LabelMesh: meshed},
			Annotations: map[string]string{AnnotationMode: mode, AnnotationDown: down}}})
	}
	in := Said{Mesh: Enabled, Mode: string(mesh.Permissive)}
	for _, tc := range []struct {
		pod, namespace Said
		policy         string
		want           Settings
	}{
		{says("no", "", ""), in, "", Settings{true, mesh.Permissive, mesh.DownOpen}},
		{says("disabled", "", ""), in, "", Settings{false, mesh.Permissive, mesh.DownOpen}},
		{says("", "permissive", ""), in, "", Settings{true, mesh.Strict, mesh.DownClosed}},
		{says("", "", "open"), in, "", Settings{true, mesh.Permissive, mesh.DownClosed}},
		{says("", "", ""), Said{}, "bogus", Settings{false, mesh.Strict, mesh.DownClosed}},
	} {
		if got := Settle(tc.pod, tc.namespace, &v1alpha1.MeshPolicySpec{MTLS: v1alpha1.MTLS{Mode: tc.policy}}); got != tc.want {
			t.Errorf("%+v in %+v: %+v, want %+v", tc.pod, tc.namespace, got, tc.want)
		}
	}
}

// Who may annotate cannot make much of it.
func TestSlipsAreBounded(t *testing.T) {
	many := map[string]string{}
	for i := range 1000 {
		many[fmt.Sprint("conduit.io/", i)] = strings.Repeat("x", 10_000)
	}
	got := Slips(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: many}})
	if len(got) != maxSlips || len(got[0].String()) > 400 {
		t.Errorf("%d slips, the first of %d bytes", len(got), len(got[0].String()))
	}
}
