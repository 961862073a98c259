package cli

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// filters are told to lapse where they do, and not where they are for nobody in the mesh.
func (s *stage) filters(t *testing.T) {
	policies := s.client.NetworkingV1().NetworkPolicies("shop")
	for name, app := range map[string]string{"for-web": "web", "for-nobody": "none"} {
		p, err := policies.Create(t.Context(), &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}}}, metav1.CreateOptions{})
		must(t, p, err)
	}
	s.podOn("n1", "shop", "filtered", map[string]string{"app": "web"})
	const lapse = "‼ NetworkPolicies hold between pods of the mesh"
	out, _ := s.conduit(ExitError, "check")
	if !strings.Contains(out, lapse) || !strings.Contains(out, "shop/for-web") || strings.Contains(out, "shop/for-nobody") || !strings.Contains(out, "--set proxy.sameNode=link") {
		t.Errorf("a policy for a pod of the mesh, and one for none:\n%s", out)
	}
	s.conduit(ExitOK, "upgrade", "--set", "proxy.sameNode=link", "--apply")
	if out, _ = s.conduit(ExitError, "check"); strings.Contains(out, lapse) {
		t.Errorf("pods of one node are linked:\n%s", out)
	}
	s.conduit(ExitOK, "upgrade", "--set", "proxy.sameNode=direct", "--apply")
	for _, name := range []string{"for-web", "for-nobody"} {
		if err := policies.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}
	if err := s.client.CoreV1().Pods("shop").Delete(t.Context(), "filtered", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Error(err)
	}
}
