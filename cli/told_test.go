package cli

import (
	"context"
	"strings"
	"testing"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/deploy"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// tells is that said has all of it.
func tells(t *testing.T, what, said string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(said, w) {
			t.Errorf("%s: no %q in\n%s", what, w, said)
		}
	}
}

// set changes labels or annotations of a namespace.
func (s *stage) set(namespace, patch string) {
	s.t.Helper()
	ns, err := s.client.CoreV1().Namespaces().Patch(s.t.Context(), namespace, types.MergePatchType, []byte(`{"metadata":`+patch+`}`), metav1.PatchOptions{})
	must(s.t, ns, err)
}

// remove deletes a pod at once.
func (s *stage) remove(namespace, name string) {
	s.t.Helper()
	if err := s.client.CoreV1().Pods(namespace).Delete(s.t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		s.t.Fatal(err)
	}
}

// misspelt: check names objects whose labels mean nothing.
func (s *stage) misspelt(t *testing.T) {
	ns, err := s.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bank", Labels: map[string]string{kube.LabelMesh: "enable"},
		Annotations: map[string]string{"conduit.io/mtls-mod": "STRICT"}}}, metav1.CreateOptions{})
	must(t, ns, err)
	s.podOn("n1", "bank", "till", map[string]string{kube.LabelMesh: "no"})
	out, _ := s.conduit(ExitError, "check")
	tells(t, "check", out, "× labels and annotations for Conduit are spelt as it knows them",
		`namespace bank has the label conduit.io/mesh: "enable" is neither enabled nor disabled, did you mean enabled? In force: the namespace is not in the mesh.`,
		`namespace bank has the annotation conduit.io/mtls-mod: "STRICT" is none of Conduit's, did you mean conduit.io/mtls-mode?`,
		`pod bank/till has the label conduit.io/mesh: "no" is neither`)
	s.set("bank", `{"labels":{"conduit.io/mesh":null},"annotations":{"conduit.io/mtls-mod":null,"conduit.io/team":"x"}}`)
	s.remove("bank", "till")
	out, _ = s.conduit(ExitError, "check")
	tells(t, "check of what may be somebody else's", out, "‼ labels and annotations", `conduit.io/team: "x" is none of Conduit's.`)
	s.set("bank", `{"annotations":{"conduit.io/team":null}}`)
	out, _ = s.conduit(ExitError, "check")
	tells(t, "check of what was put right", out, "√ labels and annotations")
}

// limited: a user who may only look, and not at everything, is told so, and not that something is broken.
func (s *stage) limited(t *testing.T) {
	b, err := s.client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "looks"},
		RoleRef:  rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "system:aggregate-to-view"},
		Subjects: []rbacv1.Subject{{APIGroup: "rbac.authorization.k8s.io", Kind: "User", Name: "looker"}}}, metav1.CreateOptions{})
	must(t, b, err)
	s.until("the binding is in force", func() bool {
		out, _, _ := runQuietly(s, "check", "--as", "looker")
		return strings.Contains(out, "√ the controller is ready")
	})
	out, _, _ := runQuietly(s, "check", "--as", "looker")
	tells(t, "check by a viewer", out, "‼ every object of the installation is there", "you may not look", "× every pod of the mesh is enrolled", "as an administrator of the cluster")
	for line := range strings.Lines(out) {
		if strings.Contains(line, "×") && strings.Contains(line, "object of the installation") || strings.Contains(line, "next: conduit upgrade") {
			t.Errorf("what cannot be seen is told as broken: %s", line)
		}
	}
}

// runQuietly is conduit, whatever its exit code.
func runQuietly(s *stage, args ...string) (out, errOut string, code int) {
	code, out, errOut = run(s.t, goodSystem(), append(args, "--kubeconfig", s.kubeconfig)...)
	return out, errOut, code
}

// nobody: where the MeshPolicy takes everybody out of the mesh, that is what is told, and what to do.
func (s *stage) nobody(t *testing.T) {
	patch := []byte(`{"apiVersion":"conduit.io/v1alpha1","kind":"MeshPolicy","metadata":{"name":"default"},"spec":{"enrolment":"None"}}`)
	apply := func(manager string) {
		t.Helper()
		err := s.client.RESTClient().Patch(types.ApplyPatchType).AbsPath("/apis/conduit.io/v1alpha1/meshpolicies/default").Param("fieldManager", manager).
			Param("force", "true").Body(patch).Do(t.Context()).Error()
		if err != nil {
			t.Fatal(err)
		}
	}
	remove := func() {
		t.Helper()
		if err := s.client.RESTClient().Delete().AbsPath("/apis/conduit.io/v1alpha1/meshpolicies/default").Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	apply("ops")
	out, _ := s.conduit(ExitError, "check")
	tells(t, "check", out, "whatever labels say: the MeshPolicy says enrolment: None", "next: kubectl patch meshpolicy default")
	_, errOut := s.conduit(ExitError, "mesh", "ns/shop", "--apply", "--wait", "--timeout", "1m")
	tells(t, "mesh --wait", errOut, "nobody is in the mesh", "cause: the MeshPolicy says enrolment: None", "next:  kubectl patch meshpolicy default")
	remove()
	apply("conduit-uninstall")
	daemons := s.client.AppsV1().DaemonSets(deploy.Namespace)
	if err := daemons.Delete(t.Context(), deploy.Agent, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	out, _ = s.conduit(ExitError, "check")
	tells(t, "check in the middle of an uninstall", out, "missing: DaemonSet conduit-agent; an uninstall has begun", "next: conduit uninstall --apply, to finish it, or conduit upgrade --apply --wait, to give it up")
	if strings.Contains(out, "check --fix, which makes") {
		t.Errorf("--fix is offered for what an uninstall has removed:\n%s", out)
	}
	s.conduit(ExitOK, "upgrade", "--apply")
	if s.enrolment(t) != "Labelled" {
		t.Error("upgrade does not give the uninstall up")
	}
	remove()
}

// targets: what mesh and unmesh say of pods that are not as the others.
func (s *stage) targets(t *testing.T) {
	ctx, core := t.Context(), s.client.CoreV1()
	ns, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "town"}}, metav1.CreateOptions{})
	must(t, ns, err)
	_, errOut := s.conduit(ExitOK, "mesh", "ns/town", "--apply", "--wait")
	tells(t, "no pods", errOut, "ns/town: no pod runs in it; those that start will be in the mesh")
	s.podOn("n1", "town", "plain", nil, corev1.PodCondition{Type: kube.ConditionEnrolled, Status: corev1.ConditionTrue})
	s.podOn("n1", "town", "in", map[string]string{kube.LabelMesh: kube.Enabled}, corev1.PodCondition{Type: kube.ConditionEnrolled, Status: corev1.ConditionTrue})
	s.podOn("n1", "town", "out", map[string]string{kube.LabelMesh: kube.Disabled}, corev1.PodCondition{Type: kube.ConditionEnrolled, Status: corev1.ConditionFalse, Reason: "OptedOut", Message: "its label"})
	host, err := core.Pods("town").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "host"},
		Spec: corev1.PodSpec{NodeName: "n1", HostNetwork: true, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	must(t, host, err)
	host.Status.Phase = corev1.PodRunning
	_, err = core.Pods("town").UpdateStatus(ctx, host, metav1.UpdateOptions{})
	must(t, host, err)

	_, errOut = s.conduit(ExitOK, "mesh", "ns/town", "--apply", "--wait")
	tells(t, "mesh", errOut, "ns/town: 2 of 2 pods enrolled", "not in the mesh: pod host, which is on its node's network", "not in the mesh: pod out, by its own label; conduit mesh pod/out -n town --apply")

	// The condition of a moment ago is not an answer.
	defer s.play(func(ctx context.Context) {
		p, err := core.Pods("town").Get(ctx, "out", metav1.GetOptions{})
		if err == nil && p.Labels[kube.LabelMesh] == kube.Enabled && s.looks.Add(1) > 20 { // an agent in no hurry
			patch := []byte(`{"status":{"conditions":[{"type":"` + kube.ConditionEnrolled + `","status":"True","reason":"Enrolled"}]}}`)
			_, _ = core.Pods("town").Patch(ctx, "out", types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		}
	})()
	_, errOut = s.conduit(ExitOK, "mesh", "pod/out", "-n", "town", "--apply", "--wait", "--timeout", "1m")
	tells(t, "mesh after unmesh", errOut, "town/out: 0 of 1 pods enrolled", "town/out: 1 of 1 pods enrolled")

	_, errOut = s.conduit(ExitOK, "unmesh", "ns/town", "--apply")
	tells(t, "unmesh", errOut, "still in the mesh: pods in, out, by their own label; conduit unmesh pod/in pod/out -n town --apply")
	for _, name := range []string{"plain", "in", "out", "host"} {
		s.remove("town", name)
	}
	_, errOut = s.conduit(ExitError, "mesh", "ns/nope", "--apply")
	tells(t, "a namespace that is not there", errOut, `namespaces "nope" not found`, "cause:", "next:  kubectl get namespaces")
}

// unmeshable: without Conduit a label does nothing, and that is told before it is set.
func (s *stage) unmeshable(t *testing.T) {
	core := s.client.CoreV1()
	_, errOut := s.conduit(ExitError, "mesh", "ns/default", "--apply")
	tells(t, "mesh without Conduit", errOut, "Conduit is not installed on this cluster", "next:  conduit install --apply --wait")
	ns, err := core.Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
	if apierrors.IsNotFound(err) || must(t, ns, err).Labels[kube.LabelMesh] != "" {
		t.Errorf("labelled all the same: %v, %v", ns, err)
	}
	out, _ := s.conduit(ExitError, "check")
	tells(t, "check without Conduit", out, "× Conduit is installed", "next: conduit check --pre && conduit install --apply --wait")
	if strings.Count(out, "×") != 2 { // and the whole
		t.Errorf("one thing is wrong:\n%s", out)
	}
}
