package cli

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/cli/preflight"
	"conduit.io/conduit/deploy"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// fix mends what can be mended without harm, says what, and leaves the rest alone.
func (s *stage) fix(t *testing.T) {
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s.node("waits", corev1.Taint{Key: kube.TaintNotReady, Effect: corev1.TaintEffectNoSchedule})
	foreign := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "foreign", Labels: map[string]string{"kubernetes.io/os": "other"}}}
	_, err := s.client.CoreV1().Nodes().Create(ctx, foreign, metav1.CreateOptions{})
	ok(err)
	s.podOn("foreign", "shop", "stale", nil, corev1.PodCondition{Type: kube.ConditionEnrolled, Status: corev1.ConditionTrue})
	s.podOn("n1", deploy.Namespace, "agent", map[string]string{"app.kubernetes.io/name": "conduit", "app.kubernetes.io/component": "agent"},
		corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue},
		corev1.PodCondition{Type: kube.ConditionWired, Status: corev1.ConditionFalse, Reason: "PluginNotInPlace", Message: "nobody keeps it"})
	ok(s.client.RbacV1().ClusterRoleBindings().Delete(ctx, "conduit-agent", metav1.DeleteOptions{}))
	_, err = s.client.CoreV1().Namespaces().Patch(ctx, deploy.Namespace, types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"baseline"}}}`), metav1.PatchOptions{})
	ok(err)

	before, _ := s.conduit(ExitError, "check") // which changes nothing, so that it says the same twice
	for _, want := range []string{"missing: ClusterRoleBinding conduit-agent", "shop/stale", "pod-security.kubernetes.io/enforce is baseline", "still tainted conduit.io/agent-not-ready: n1, waits",
		"waits: it has no agent", "n1: container cni is not ready", "× every agent says that its node is wired", "n1: PluginNotInPlace: nobody keeps it"} {
		if !strings.Contains(before, want) {
			t.Errorf("no %q in\n%s", want, before)
		}
	}
	if again, _ := s.conduit(ExitError, "check"); again != before {
		t.Errorf("a check has changed something:\n%s\nand\n%s", before, again)
	}
	out, _ := s.conduit(ExitError, "check", "--fix", "--timeout", "5s", "-o", "json")
	var r preflight.Report
	ok(json.Unmarshal([]byte(out), &r))
	if diff := cmp.Diff([]string{"ClusterRoleBinding conduit-agent created", "namespace conduit labelled pod-security.kubernetes.io/enforce=privileged",
		"taint conduit.io/agent-not-ready of node n1 removed", "condition conduit.io/Enrolled of 1 pods removed"}, r.Fixed); diff != "" {
		t.Errorf("fixed (-want +got)\n%s", diff)
	}
	out, _ = s.conduit(ExitError, "check")
	for _, want := range []string{"√ every object of the installation is there", "√ the namespace conduit admits agents", "√ no pod has a condition that nobody keeps", "agent-not-ready: waits"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	kept, err := s.client.CoreV1().Pods("shop").Get(ctx, "web", metav1.GetOptions{})
	if !slices.ContainsFunc(must(t, kept, err).Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == kube.ConditionEnrolled }) {
		t.Error("the condition of a pod whose node has an agent is gone")
	}
	// For uninstall, as it was.
	ok(s.client.CoreV1().Pods(deploy.Namespace).Delete(ctx, "agent", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}))
	ok(s.client.CoreV1().Nodes().Delete(ctx, "waits", metav1.DeleteOptions{}))
	n1, err := s.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	n1.Spec.Taints = append(must(t, n1, err).Spec.Taints, corev1.Taint{Key: kube.TaintNotReady, Effect: corev1.TaintEffectNoSchedule})
	_, err = s.client.CoreV1().Nodes().Update(ctx, n1, metav1.UpdateOptions{})
	ok(err)
}
