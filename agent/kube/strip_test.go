package kube

import (
	"slices"
	"testing"

	"conduit.io/conduit/agent/kubelet"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
)

// What is kept of a pod still says at which ports it is probed, and nothing of what its containers are.
func TestStrippedPodsKeepTheirProbes(t *testing.T) {
	probe := func(port intstr.IntOrString) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: port}}}
	}
	hook := &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(5)}}
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{StartupProbe: probe(intstr.FromInt32(1))}},
		Containers: []corev1.Container{
			{Image: "a", Args: []string{"secret"}, Ports: []corev1.ContainerPort{{ContainerPort: 9}, {Name: "web", ContainerPort: 2}}, LivenessProbe: probe(intstr.FromString("web"))},
			{Image: "b", ReadinessProbe: probe(intstr.FromInt32(3)), StartupProbe: probe(intstr.FromInt32(4)), Lifecycle: &corev1.Lifecycle{PreStop: hook}},
			{Image: "c"},
		},
	}}
	v, err := strip(pod)
	if err != nil {
		t.Fatal(err)
	}
	kept := v.(*corev1.Pod)
	if got, want := kubelet.Ports(&kept.Spec), []uint16{1, 2, 3, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("ports %v, want %v", got, want)
	}
	for _, c := range kept.Spec.Containers {
		if c.Image != "" || c.Args != nil || len(c.Ports) > 1 {
			t.Errorf("kept: %+v", c)
		}
	}
}

// A Pod that starts changes many times, and hardly ever in what is kept of it.
func TestAlike(t *testing.T) {
	kept := func(change func(*corev1.Pod)) any {
		p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{Phase: corev1.PodPending}}
		p.Name, p.ResourceVersion, p.Labels = "web", "1", map[string]string{"conduit.io/mesh": "enabled"}
		change(p)
		v, err := strip(p)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	was := kept(func(*corev1.Pod) {})
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   bool
	}{
		"a condition": {func(p *corev1.Pod) {
			p.ResourceVersion, p.Status.Conditions = "2", []corev1.PodCondition{{Type: corev1.PodReady}}
			p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
		}, true},
		"a foreign label": {func(p *corev1.Pod) { p.Labels["app"] = "web" }, true},
		"a label of ours": {func(p *corev1.Pod) { p.Labels["conduit.io/mesh"] = "disabled" }, false},
		"an address":      {func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "10.1.0.7", []corev1.PodIP{{IP: "10.1.0.7"}} }, false},
		"its end":         {func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, false},
		"another pod":     {func(p *corev1.Pod) { p.UID = "2" }, false},
		"a generation":    {func(p *corev1.Pod) { p.Generation = 2 }, false},
	} {
		if got := alike(was, kept(tc.change)); got != tc.want {
			t.Errorf("%s: alike %v", name, got)
		}
	}
	if alike(&corev1.Namespace{}, &corev1.Namespace{}) {
		t.Error("Namespaces are not compared")
	}
}

// Pods that start at once, before the watch has told of them, do not wait for each other.
func TestManyPodsAreFoundAtOnce(t *testing.T) {
	c, err := connect(&rest.Config{Host: "https://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 110 { // as many as there are on a node
		if !c.core.GetRateLimiter().TryAccept() {
			t.Fatalf("request %d would wait", i)
		}
	}
}
