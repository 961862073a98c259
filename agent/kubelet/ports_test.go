package kubelet

import (
	"slices"
	"testing"

	"conduit.io/conduit/api/kernel"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func web(host string, port intstr.IntOrString) *corev1.HTTPGetAction {
	return &corev1.HTTPGetAction{Host: host, Port: port}
}

func TestPorts(t *testing.T) {
	number, name := intstr.FromInt32, intstr.FromString
	pod := &corev1.PodSpec{
		InitContainers: []corev1.Container{{
			StartupProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: number(9001)}}},
		}},
		Containers: []corev1.Container{{
			Ports:          []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}, {Name: "other", ContainerPort: 8081}},
			LivenessProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: web("", name("web"))}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9002}}},
			StartupProbe:   &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: web("", number(8080))}},
			Lifecycle: &corev1.Lifecycle{
				PostStart: &corev1.LifecycleHandler{HTTPGet: web("", number(7001))},
				PreStop:   &corev1.LifecycleHandler{HTTPGet: web("", number(7002))},
			},
		}, {
			Ports:          []corev1.ContainerPort{{Name: "third", ContainerPort: 8083}},
			LivenessProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: web("192.0.2.1", number(6001))}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: "192.0.2.1", Port: number(6002)}}},
			StartupProbe:   &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}},
			Lifecycle:      &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{HTTPGet: web("", name("web"))}}, // of another container
		}, {
			LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: web("", number(65536))}},
			StartupProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: web("", number(0))}},
		}},
	}
	if got, want := Ports(pod), []uint16{7001, 7002, 8080, 9001, 9002}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	many := &corev1.PodSpec{}
	for i := range int32(kernel.MaxProbes + 1) {
		many.Containers = append(many.Containers, corev1.Container{
			LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: web("", number(1000+i))}}})
	}
	if got := Ports(many); len(got) != kernel.MaxProbes {
		t.Errorf("%d ports, and the kernel keeps %d", len(got), kernel.MaxProbes)
	}
}
