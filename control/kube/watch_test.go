package kube

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/control/discovery"
	"conduit.io/conduit/tests/apiserver"

	corev1 "k8s.io/api/core/v1"
	discoveryk8s "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// eventually waits until ok says so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// createCRD makes MeshPolicy known to the API server.
func createCRD(t *testing.T, cfg *rest.Config) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/crds/meshpolicies.conduit.io.yaml")
	if err != nil {
		t.Fatal(err)
	}
	body, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	post(t, cfg, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body)
}

func post(t *testing.T, cfg *rest.Config, path string, body []byte) {
	t.Helper()
	client := kubernetes.NewForConfigOrDie(cfg).Discovery().RESTClient()
	if err := client.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body(body).Do(t.Context()).Error(); err != nil {
		t.Fatalf("post %s: %v", path, err)
	}
}

// TestWatch follows a real API server: what is there at the start, what comes, a kind that becomes known later, and what
// happens while the API server is away.
func TestWatch(t *testing.T) {
	s := apiserver.Start(t)
	client := kubernetes.NewForConfigOrDie(s.Config)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop",
		Labels: map[string]string{kube.LabelMesh: kube.Enabled}}}, metav1.CreateOptions{})
	must(err)
	pod, err := client.CoreV1().Pods("shop").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	must(err)
	pod.Status.PodIPs = []corev1.PodIP{{IP: "10.1.0.1"}}
	pod.Status.PodIP = "10.1.0.1"
	_, err = client.CoreV1().Pods("shop").UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	must(err)

	x := discovery.New()
	run, cancel := context.WithCancel(ctx)
	w, err := Watch(run, s.Config, x, slog.New(slog.DiscardHandler))
	must(err)
	defer func() { cancel(); w.Wait() }()
	eventually(t, "everything is read once", w.Synced)
	workload := func() *discoveryv1.Workload {
		for _, w := range x.Lookup([]netip.AddrPort{netip.MustParseAddrPort("10.1.0.1:0")}).Workloads {
			return w
		}
		return &discoveryv1.Workload{}
	}
	if got := workload(); got.Uid != string(pod.UID) || !got.Meshed || got.ServiceAccount != "default" || got.MtlsMode != discoveryv1.Workload_MTLS_MODE_PERMISSIVE {
		t.Fatalf("of what was there at the start: %v", got)
	}

	svc, err := client.CoreV1().Services("shop").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}, Selector: map[string]string{"app": "web"}}}, metav1.CreateOptions{})
	must(err)
	_, err = client.DiscoveryV1().EndpointSlices("shop").Create(ctx, &discoveryk8s.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{discoveryk8s.LabelServiceName: "web"}}, AddressType: discoveryk8s.AddressTypeIPv4,
		Ports: []discoveryk8s.EndpointPort{{Name: ptr("http"), Port: ptr(int32(8080))}},
		Endpoints: []discoveryk8s.Endpoint{{Addresses: []string{"10.1.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod",
			Namespace: "shop", Name: "web", UID: pod.UID}}}}, metav1.CreateOptions{})
	must(err)
	vip := netip.AddrPortFrom(netip.MustParseAddr(svc.Spec.ClusterIP), 80)
	endpoints := func() int {
		r := x.Lookup([]netip.AddrPort{vip})
		if len(r.Endpoints) != 1 {
			return -1
		}
		return len(r.Endpoints[0].Endpoints)
	}
	eventually(t, "the service has its endpoint", func() bool { return endpoints() == 1 })

	s.Down()
	if endpoints() != 1 || workload().Uid == "" {
		t.Error("without the API server, what was known is forgotten")
	}
	s.Up()
	createCRD(t, s.Config)
	policy := []byte(`{"apiVersion":"conduit.io/v1alpha1","kind":"MeshPolicy","metadata":{"name":"default"},"spec":{"mtls":{"mode":"STRICT"}}}`)
	const policies = "/apis/conduit.io/v1alpha1/meshpolicies"
	eventually(t, "MeshPolicy is a kind", func() bool {
		return client.Discovery().RESTClient().Get().AbsPath(policies).Do(ctx).Error() == nil
	})
	post(t, s.Config, policies, policy)
	eventually(t, "the policy is in force", func() bool { return workload().MtlsMode == discoveryv1.Workload_MTLS_MODE_STRICT })
	zero := int64(0)
	must(client.CoreV1().Pods("shop").Delete(ctx, "web", metav1.DeleteOptions{GracePeriodSeconds: &zero,
		Preconditions: &metav1.Preconditions{UID: &pod.UID}}))
	eventually(t, "the endpoint of a deleted pod is gone", func() bool { return endpoints() == 0 })
}

func ptr[T any](v T) *T { return &v }
