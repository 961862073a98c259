package kube

import (
	"slices"
	"testing"

	"conduit.io/conduit/agent/kubelet"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
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
