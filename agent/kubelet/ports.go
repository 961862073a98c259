package kubelet

import (
	"slices"

	"conduit.io/conduit/api/kernel"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Ports are the ports of a pod that its own probes and lifecycle hooks name, in ascending order, each once, and no more than
// the kernel keeps. Those that name another host are not the pod's.
func Ports(pod *corev1.PodSpec) []uint16 {
	var all []uint16
	for _, containers := range [][]corev1.Container{pod.InitContainers, pod.Containers} {
		for i := range containers {
			all = append(all, containerPorts(&containers[i])...)
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	return slices.Clip(all[:min(len(all), kernel.MaxProbes)])
}

func containerPorts(c *corev1.Container) (all []uint16) {
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p == nil {
			continue
		}
		all = append(all, handlerPorts(c, p.HTTPGet, p.TCPSocket)...)
		if p.GRPC != nil {
			all = appendPort(all, c, intstr.FromInt32(p.GRPC.Port))
		}
	}
	if c.Lifecycle == nil {
		return all
	}
	for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
		if h != nil {
			all = append(all, handlerPorts(c, h.HTTPGet, h.TCPSocket)...)
		}
	}
	return all
}

func handlerPorts(c *corev1.Container, web *corev1.HTTPGetAction, tcp *corev1.TCPSocketAction) (all []uint16) {
	if web != nil && web.Host == "" {
		all = appendPort(all, c, web.Port)
	}
	if tcp != nil && tcp.Host == "" {
		all = appendPort(all, c, tcp.Port)
	}
	return all
}

// appendPort appends a port by its number, or by its name in the container. One that is none is left out.
func appendPort(all []uint16, c *corev1.Container, port intstr.IntOrString) []uint16 {
	n := port.IntVal
	if port.Type == intstr.String {
		n = 0
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				n = p.ContainerPort
			}
		}
	}
	if n < 1 || n > 65535 {
		return all
	}
	return append(all, uint16(n))
}
