package cli

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/cli/preflight"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/tests/apiserver"

	authzv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// stage is a real API server, and a test that plays the rest of the cluster: kubelets, and the controllers of Kubernetes.
type stage struct {
	t          *testing.T
	client     *kubernetes.Clientset
	kubeconfig string
	looks      atomic.Int32 // of who plays an agent that takes its time
}

func newStage(t *testing.T) *stage {
	t.Helper()
	server := apiserver.Start(t)
	client, err := kubernetes.NewForConfig(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["test"] = &clientcmdapi.Cluster{Server: server.Config.Host, InsecureSkipTLSVerify: true}
	cfg.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: server.Config.BearerToken}
	cfg.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "admin"}
	cfg.CurrentContext = "test"
	s := &stage{t: t, client: client, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	if err := clientcmd.WriteToFile(*cfg, s.kubeconfig); err != nil {
		t.Fatal(err)
	}
	return s
}

// conduit runs a command, and returns what it wrote.
func (s *stage) conduit(code int, args ...string) (out, errOut string) {
	s.t.Helper()
	got, out, errOut := run(s.t, goodSystem(), append(args, "--kubeconfig", s.kubeconfig)...)
	if got != code {
		s.t.Fatalf("conduit %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, errOut)
	}
	return out, errOut
}

func must[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// play calls act again and again until the test ends or stop is called. What it cannot do yet it does later.
func (s *stage) play(act func(ctx context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ticks := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				ticks.Stop()
				return
			case <-ticks.C:
				act(ctx)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// until waits for what others do.
func (s *stage) until(what string, done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); <-time.After(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not in time: %s", what)
		}
	}
}

// rollout plays the controllers of Deployments and DaemonSets, and Conduit's own, which publishes the trust bundle.
func (s *stage) rollout(ctx context.Context) {
	apps := s.client.AppsV1()
	if d, err := apps.Deployments(deploy.Namespace).Get(ctx, deploy.Controller, metav1.GetOptions{}); err == nil {
		n := *d.Spec.Replicas
		d.Status.ObservedGeneration, d.Status.Replicas, d.Status.UpdatedReplicas, d.Status.ReadyReplicas, d.Status.AvailableReplicas = d.Generation, n, n, n, n
		_, _ = apps.Deployments(deploy.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{}) // later, if not now
		_, _ = s.client.CoreV1().ConfigMaps(deploy.Namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conduit-trust-roots",
			Labels: map[string]string{kube.LabelInstallation: kube.Installation, "app.kubernetes.io/managed-by": "conduit-controller"}}}, metav1.CreateOptions{})
	}
	if d, err := apps.DaemonSets(deploy.Namespace).Get(ctx, deploy.Agent, metav1.GetOptions{}); err == nil {
		d.Status.ObservedGeneration, d.Status.DesiredNumberScheduled, d.Status.UpdatedNumberScheduled, d.Status.NumberAvailable = d.Generation, 2, 2, 2
		d.Status.CurrentNumberScheduled, d.Status.NumberReady = 2, 2
		_, _ = apps.DaemonSets(deploy.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{})
	}
}

// sweep plays kubelets that run the pods which clean nodes, and the controller that ends namespaces.
func (s *stage) sweep(phase corev1.PodPhase) func(context.Context) {
	return func(ctx context.Context) {
		pods, err := s.client.CoreV1().Pods(deploy.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=uninstall"})
		if err != nil {
			return
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; p.Status.Phase != phase {
				p.Status.Phase = phase
				_, _ = s.client.CoreV1().Pods(deploy.Namespace).UpdateStatus(ctx, p, metav1.UpdateOptions{})
			}
		}
		if ns, err := s.client.CoreV1().Namespaces().Get(ctx, deploy.Namespace, metav1.GetOptions{}); err == nil && ns.DeletionTimestamp != nil {
			s.empty(ctx)
			ns.Spec.Finalizers = nil
			_, _ = s.client.CoreV1().Namespaces().Finalize(ctx, ns, metav1.UpdateOptions{})
		}
	}
}

// empty removes what is in the namespace, as its controller does before the namespace goes.
func (s *stage) empty(ctx context.Context) {
	all, options := metav1.ListOptions{}, metav1.DeleteOptions{}
	_ = s.client.CoreV1().ConfigMaps(deploy.Namespace).DeleteCollection(ctx, options, all)
	_ = s.client.CoreV1().ServiceAccounts(deploy.Namespace).DeleteCollection(ctx, options, all)
}

func (s *stage) node(name string, taints ...corev1.Taint) {
	s.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": "linux"}}, Spec: corev1.NodeSpec{Taints: taints}}
	created, err := s.client.CoreV1().Nodes().Create(s.t.Context(), n, metav1.CreateOptions{})
	must(s.t, created, err)
	created.Status.NodeInfo.KernelVersion = "6.1.0-13-amd64"
	created.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	_, err = s.client.CoreV1().Nodes().UpdateStatus(s.t.Context(), created, metav1.UpdateOptions{})
	must(s.t, created, err)
}

// pod makes a pod that runs, with the condition of the mesh if status is not empty.
func (s *stage) pod(namespace, name string, status corev1.ConditionStatus, reason string) {
	s.t.Helper()
	var conditions []corev1.PodCondition
	if status != "" {
		conditions = []corev1.PodCondition{{Type: kube.ConditionEnrolled, Status: status, Reason: reason}}
	}
	s.podOn("n1", namespace, name, nil, conditions...)
}

// One installation from its beginning to its end, on a real API server.
func TestCluster(t *testing.T) {
	s := newStage(t)
	s.node("n1", corev1.Taint{Key: kube.TaintNotReady, Effect: corev1.TaintEffectNoSchedule}, corev1.Taint{Key: "other", Effect: corev1.TaintEffectNoSchedule})
	s.node("n2")
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{{"before", s.before}, {"without", s.unmeshable}, {"install", s.install}, {"rights", s.rights}, {"stuck", s.stuck}, {"upgrade", s.upgrade}, {"older", s.older}, {"words", s.words}, {"mesh", s.mesh}, {"interrupted", s.interrupted},
		{"check", s.check}, {"certificates", s.certificates}, {"filters", s.filters}, {"misspelt", s.misspelt}, {"limited", s.limited}, {"nobody", s.nobody}, {"targets", s.targets}, {"fix", s.fix}, {"uninstall", s.uninstall}, {"foreign", s.foreign}} {
		if !t.Run(step.name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			step.run(t)
		}) {
			return // what follows stands on it
		}
	}
}

func (s *stage) before(t *testing.T) {
	out, _ := s.conduit(ExitOK, "check", "--pre", "-o", "json")
	var r preflight.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || !r.Success || len(r.Categories) != 4 {
		t.Fatalf("%v\n%s", err, out)
	}
	out, _ = s.conduit(ExitError, "check", "--pre", "--as", "nobody")
	if !strings.Contains(out, "you may not create namespaces, patch namespaces") {
		t.Errorf("somebody without rights:\n%s", out)
	}
	out, _ = s.conduit(ExitError, "check")
	if !strings.Contains(out, "conduit install --apply") {
		t.Errorf("check of a cluster without Conduit:\n%s", out)
	}
	_, errOut := s.conduit(ExitError, "upgrade")
	if !strings.Contains(errOut, "there is nothing to upgrade") {
		t.Errorf("upgrade of nothing: %s", errOut)
	}
	if _, errOut = s.conduit(ExitOK, "uninstall", "--apply"); !strings.Contains(errOut, "nothing of Conduit") {
		t.Errorf("uninstall of nothing: %s", errOut)
	}
}

func (s *stage) install(t *testing.T) {
	stop := s.play(s.rollout)
	defer stop()
	_, errOut := s.conduit(ExitOK, "install", "--apply", "--wait", "--timeout", "2m")
	for _, want := range []string{"Namespace conduit created", "DaemonSet conduit-agent created", "conduit-controller: 1 of 1 ready", "conduit-agent: 2 of 2 nodes ready",
		"next: conduit mesh ns/NAME --apply --wait, and conduit check"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("no %q in\n%s", want, errOut)
		}
	}
	_, errOut = s.conduit(ExitOK, "install", "--apply")
	if strings.Contains(errOut, " created") || strings.Contains(errOut, " changed") {
		t.Errorf("the same once more:\n%s", errOut)
	}
	_, errOut = s.conduit(ExitError, "install", "--apply", "--set", "controller.replicas=2")
	if !strings.Contains(errOut, "next:  conduit upgrade --apply") {
		t.Errorf("an installation with other values: %s", errOut)
	}
}

// rights asks the API server what Conduit's accounts may do: that roles are bound to whom they are meant for.
func (s *stage) rights(t *testing.T) {
	const controller, agent = "conduit-controller", "conduit-agent"
	for _, tc := range []struct {
		who, verb, group, resource, sub, namespace, name string
		may                                              bool
	}{
		{agent, "watch", "", "pods", "", "shop", "", true},
		{agent, "list", "", "namespaces", "", "", "", true},
		{agent, "watch", "conduit.io", "meshpolicies", "", "", "", true},
		{agent, "get", "", "secrets", "", "conduit", "conduit-issuer", false},
		{agent, "list", "", "secrets", "", "shop", "", false},
		{agent, "patch", "", "pods", "status", "shop", "", false},
		{agent, "patch", "", "nodes", "", "", "n1", false},
		{agent, "create", "", "pods", "exec", "shop", "", false},
		{controller, "update", "", "secrets", "", "conduit", "conduit-issuer", true},
		{controller, "get", "", "secrets", "", "conduit", "another", false},
		{controller, "get", "", "secrets", "", "shop", "conduit-issuer", false},
		{controller, "list", "", "secrets", "", "", "", false},
		{controller, "update", "coordination.k8s.io", "leases", "", "conduit", "conduit-controller", true},
		{controller, "create", "authentication.k8s.io", "tokenreviews", "", "", "", true},
		{controller, "patch", "", "pods", "status", "shop", "web", true},
		{controller, "patch", "", "pods", "", "shop", "web", false},
		{controller, "patch", "", "nodes", "", "", "n1", true},
		{controller, "delete", "", "pods", "", "shop", "web", false},
		{controller, "create", "", "serviceaccounts", "token", "shop", "web", false},
	} {
		r, err := s.client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authzv1.SubjectAccessReview{Spec: authzv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:conduit:" + tc.who,
			ResourceAttributes: &authzv1.ResourceAttributes{Verb: tc.verb, Group: tc.group, Resource: tc.resource, Subresource: tc.sub,
				Namespace: tc.namespace, Name: tc.name}}}, metav1.CreateOptions{})
		if must(t, r, err).Status.Allowed != tc.may {
			t.Errorf("%+v: the API server says %v", tc, r.Status.Allowed)
		}
	}
}

// stuck: who waits in vain is told why.
func (s *stage) stuck(t *testing.T) {
	pods := s.client.CoreV1().Pods(deploy.Namespace)
	p, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "conduit-agent-x", Labels: map[string]string{"app.kubernetes.io/name": "conduit", "app.kubernetes.io/component": "agent"}},
		Spec:       corev1.PodSpec{NodeName: "n2", Containers: []corev1.Container{{Name: "agent", Image: "i"}}}}, metav1.CreateOptions{})
	must(t, p, err)
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "agent", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImageNeverPull"}}}}
	_, err = pods.UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
	must(t, p, err)
	_, errOut := s.conduit(ExitError, "upgrade", "--apply", "--wait", "--timeout", "3s", "--set", "agent.logLevel=debug")
	if !strings.Contains(errOut, "pod conduit-agent-x on node n2: container agent: ErrImageNeverPull") {
		t.Errorf("an image is missing: %s", errOut)
	}
	now := int64(0)
	if err := pods.Delete(t.Context(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
}

func (s *stage) upgrade(t *testing.T) {
	budget := func() bool {
		_, err := s.client.PolicyV1().PodDisruptionBudgets(deploy.Namespace).Get(t.Context(), deploy.Controller, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	s.conduit(ExitOK, "upgrade", "--apply", "--set", "controller.replicas=2")
	if !budget() {
		t.Error("two replicas have no disruption budget")
	}
	if out, _ := s.conduit(ExitOK, "upgrade"); !strings.Contains(out, "replicas: 2") || !strings.Contains(out, "--log-level=debug") {
		t.Error("an upgrade forgets the values of before")
	}
	// What is not of `conduit install` stays, whatever its labels.
	foreign := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "mine", Labels: map[string]string{"app.kubernetes.io/part-of": "conduit"}}}
	_, err := s.client.PolicyV1().PodDisruptionBudgets(deploy.Namespace).Create(t.Context(), foreign, metav1.CreateOptions{})
	must(t, foreign, err)
	_, errOut := s.conduit(ExitOK, "upgrade", "--apply", "--reset-values")
	if !strings.Contains(errOut, "PodDisruptionBudget conduit-controller removed") || strings.Contains(errOut, "mine") || budget() {
		t.Errorf("back to one replica:\n%s", errOut)
	}
	// Somebody else's field is not taken over unasked.
	patch := []byte(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"conduit-controller"},"spec":{"replicas":5}}`)
	force := true
	_, err = s.client.AppsV1().Deployments(deploy.Namespace).Patch(t.Context(), deploy.Controller, types.ApplyPatchType, patch, metav1.PatchOptions{FieldManager: "ops", Force: &force})
	must(t, patch, err)
	if _, errOut = s.conduit(ExitError, "upgrade", "--apply"); !strings.Contains(errOut, "--force-conflicts") || !strings.Contains(errOut, "ops") {
		t.Errorf("a conflict: %s", errOut)
	}
	s.conduit(ExitOK, "upgrade", "--apply", "--force-conflicts")
}

func (s *stage) mesh(t *testing.T) {
	ctx := t.Context()
	ns, err := s.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	must(t, ns, err)
	s.pod("shop", "web", corev1.ConditionFalse, "NoNetwork")
	stop := s.play(func(ctx context.Context) { // the agent and the controller
		patch := []byte(`{"status":{"conditions":[{"type":"` + kube.ConditionEnrolled + `","status":"True","reason":"Enrolled"}]}}`)
		ns, err := s.client.CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{})
		if err == nil && ns.Labels[kube.LabelMesh] == kube.Enabled {
			_, _ = s.client.CoreV1().Pods("shop").Patch(ctx, "web", types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		}
	})
	_, errOut := s.conduit(ExitOK, "mesh", "ns/shop", "--apply", "--wait", "--timeout", "1m")
	stop()
	if !strings.Contains(errOut, "ns/shop: 1 of 1 pods enrolled") {
		t.Errorf("%s", errOut)
	}
	s.pod("shop", "job", corev1.ConditionFalse, "NetworkNotFound")
	if _, errOut = s.conduit(ExitError, "mesh", "ns/shop", "--apply", "--wait"); !strings.Contains(errOut, "NetworkNotFound") {
		t.Errorf("a pod that is refused: %s", errOut)
	}
	s.conduit(ExitOK, "unmesh", "pod/job", "-n", "shop", "--apply")
	s.conduit(ExitOK, "unmesh", "ns/shop", "--apply")
	ns, err = s.client.CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{})
	must(t, ns, err)
	pod, err := s.client.CoreV1().Pods("shop").Get(ctx, "job", metav1.GetOptions{})
	if _, there := ns.Labels[kube.LabelMesh]; there || must(t, pod, err).Labels[kube.LabelMesh] != kube.Disabled {
		t.Errorf("labels %v, %v", ns.Labels, pod.Labels)
	}
	if _, errOut = s.conduit(ExitError, "mesh", "ns/none", "--apply"); !strings.Contains(errOut, `namespaces "none" not found`) {
		t.Errorf("a namespace that is not there: %s", errOut)
	}
}

// check finds what is wrong, each by name.
func (s *stage) check(t *testing.T) {
	s.conduit(ExitOK, "mesh", "ns/shop", "--apply")
	s.pod("shop", "lost", corev1.ConditionFalse, "Bypassed")
	out, _ := s.conduit(ExitError, "check")
	for _, want := range []string{"× no node waits for its agent", "n1", "shop/lost (Bypassed)", "√ Conduit's resources are defined", "√ the controller is ready (1 of 1 replicas)",
		"× the trust bundle is published and valid", "there is no certificate"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// podOn makes a pod that runs on a node.
func (s *stage) podOn(node, namespace, name string, labels map[string]string, conditions ...corev1.PodCondition) {
	s.t.Helper()
	pods := s.client.CoreV1().Pods(namespace)
	p, err := pods.Create(s.t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	must(s.t, p, err)
	p.Status.Phase, p.Status.Conditions = corev1.PodRunning, conditions
	for i := range p.Status.Conditions {
		p.Status.Conditions[i].LastTransitionTime = metav1.Now()
	}
	_, err = pods.UpdateStatus(s.t.Context(), p, metav1.UpdateOptions{})
	must(s.t, p, err)
}

func (s *stage) uninstall(t *testing.T) {
	stop := s.play(s.sweep(corev1.PodFailed))
	_, errOut := s.conduit(ExitError, "uninstall", "--apply", "--drain", "500ms")
	stop()
	if !strings.Contains(errOut, "is not clean") {
		t.Errorf("a node that cannot be cleaned: %s", errOut)
	}
	if !strings.Contains(errOut, "have not ended, and are cut") || s.enrolment(t) != "None" {
		t.Errorf("pods are not taken out of the mesh first: enrolment %q\n%s", s.enrolment(t), errOut)
	}
	if _, err := s.client.AppsV1().Deployments(deploy.Namespace).Get(t.Context(), deploy.Controller, metav1.GetOptions{}); err != nil {
		t.Errorf("the rest was removed although a node is not clean: %v", err)
	}
	if s.conduit(ExitOK, "upgrade", "--apply"); s.enrolment(t) != "Labelled" {
		t.Errorf("an uninstall was given up, and pods stay out of the mesh: enrolment %q", s.enrolment(t))
	}
	defer s.play(s.sweep(corev1.PodSucceeded))()
	_, errOut = s.conduit(ExitOK, "uninstall", "--apply", "--timeout", "2m", "--drain", "0s")
	for _, want := range []string{"taint conduit.io/agent-not-ready of node n1 removed", "condition conduit.io/Enrolled of", "Namespace conduit stays: Conduit has not made PodDisruptionBudget mine",
		"verified: 2 nodes clean, 0 objects left"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("no %q in\n%s", want, errOut)
		}
	}
	if n := strings.Count(errOut, "Deployment conduit-controller removed"); n != 1 {
		t.Errorf("the controller is removed %d times", n)
	}
	n, err := s.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	has := func(key string) bool {
		return slices.ContainsFunc(must(t, n, err).Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
	}
	if has(kube.TaintNotReady) || !has("other") {
		t.Errorf("taints of n1: %v", n.Spec.Taints)
	}
	web, err := s.client.CoreV1().Pods("shop").Get(t.Context(), "web", metav1.GetOptions{})
	if slices.ContainsFunc(must(t, web, err).Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == kube.ConditionEnrolled }) {
		t.Error("a pod keeps its condition")
	}
}

// enrolment is what the MeshPolicy says of who is in the mesh.
func (s *stage) enrolment(t *testing.T) string {
	t.Helper()
	data, err := s.client.RESTClient().Get().AbsPath("/apis/conduit.io/v1alpha1/meshpolicies/default").DoRaw(t.Context())
	var p v1alpha1.MeshPolicy
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil {
		t.Error(err)
	}
	return p.Spec.Enrolment
}
