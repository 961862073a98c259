package cli

import (
	"strings"
	"testing"

	"conduit.io/conduit/deploy"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// foreign: what somebody else has made is neither taken over nor removed, neither in the namespace nor under the names of Conduit's
// objects. The uninstall before has left the namespace, for what is in it, as somebody else's.
func (s *stage) foreign(t *testing.T) {
	ctx := t.Context()
	core, roles := s.client.CoreV1(), s.client.RbacV1().ClusterRoles()
	role, err := roles.Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: deploy.Agent, Labels: map[string]string{"app.kubernetes.io/part-of": "conduit"}},
		Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"secrets"}}}}, metav1.CreateOptions{})
	must(t, role, err)
	out, _ := s.conduit(ExitError, "check", "--pre")
	for _, want := range []string{"install would refuse, for ClusterRole conduit-agent", "somebody else has made it; uninstall will leave it"} {
		if !strings.Contains(out, want) {
			t.Errorf("check --pre: no %q in\n%s", want, out)
		}
	}
	_, errOut := s.conduit(ExitError, "install", "--apply", "--force-conflicts")
	if !strings.Contains(errOut, "somebody else has made ClusterRole conduit-agent") || !strings.Contains(errOut, "next:  kubectl delete clusterrole conduit-agent") || strings.Contains(errOut, "created") {
		t.Errorf("an object of somebody else's: %s", errOut)
	}
	s.conduit(ExitOK, "uninstall", "--apply", "--drain", "0s")
	if r, err := roles.Get(ctx, deploy.Agent, metav1.GetOptions{}); must(t, r, err).UID != role.UID || len(r.Rules) != 1 {
		t.Errorf("somebody else's role is now %v", r.Rules)
	}
	if err := roles.Delete(ctx, deploy.Agent, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	defer s.play(s.sweep(corev1.PodSucceeded))()

	// A namespace of somebody else's serves, and stays.
	if _, errOut = s.conduit(ExitOK, "install", "--apply"); !strings.Contains(errOut, "Namespace conduit is somebody else's") {
		t.Errorf("install: %s", errOut)
	}
	if out, _ = s.conduit(ExitError, "check"); !strings.Contains(out, "√ every object of the installation is there") {
		t.Errorf("check:\n%s", out)
	}
	s.conduit(ExitOK, "uninstall", "--apply", "--drain", "0s")
	budgets := s.client.PolicyV1().PodDisruptionBudgets(deploy.Namespace)
	mine, err := budgets.Get(ctx, "mine", metav1.GetOptions{})
	must(t, mine, err)
	ns, err := core.Namespaces().Get(ctx, deploy.Namespace, metav1.GetOptions{})
	if must(t, ns, err).DeletionTimestamp != nil || deploy.Ours(ns) {
		t.Errorf("the namespace of somebody else: %+v", ns.ObjectMeta)
	}

	// One that install has made goes, if nobody has put anything into it.
	if err := budgets.Delete(ctx, "mine", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := core.Namespaces().Delete(ctx, deploy.Namespace, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.until("the namespace is gone", func() bool {
		_, err := core.Namespaces().Get(ctx, deploy.Namespace, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	s.conduit(ExitOK, "install", "--apply")
	root := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt"}} // of every namespace
	root, err = core.ConfigMaps(deploy.Namespace).Create(ctx, root, metav1.CreateOptions{})
	must(t, root, err)
	if _, errOut = s.conduit(ExitOK, "uninstall", "--apply", "--drain", "0s"); !strings.Contains(errOut, "Namespace conduit removed") {
		t.Errorf("uninstall: %s", errOut)
	}
}
