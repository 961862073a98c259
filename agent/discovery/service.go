package discovery

import (
	"net/netip"
	"slices"

	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// services is svc as a node's proxy is to know it: as one Service, or as several where its cluster IPs lead to pods of the node
// alone, or its load balancer's addresses are for some clients alone (see agent/controlplane, where EndpointSlices say more).
func services(name manifest.Name, svc *corev1.Service, pods []podView, node string) []mesh.Service {
	own, outside, balanced := kube.ClusterIPs(&svc.Spec), kube.OutsideIPs(svc), kube.BalancerIPs(svc)
	sources := kube.SourceRanges(svc)
	if len(sources) == 0 {
		balanced = nil
	}
	outside = slices.DeleteFunc(outside, func(a netip.Addr) bool { return slices.Contains(own, a) || slices.Contains(balanced, a) })
	var out []mesh.Service
	if kube.Local(&svc.Spec) {
		here := slices.DeleteFunc(slices.Clone(pods), func(v podView) bool { return !Local(v.pod, node) })
		out = append(out, service(name, svc, own, here))
	} else {
		outside = append(own, outside...)
	}
	if len(outside) > 0 || len(out) == 0 {
		out = append(out, service(name, svc, outside, pods))
	}
	if len(balanced) > 0 {
		s := service(name, svc, balanced, pods)
		s.Sources = sources
		out = append(out, s)
	}
	return out
}

// service is svc at some of its addresses.
func service(name manifest.Name, svc *corev1.Service, at []netip.Addr, pods []podView) mesh.Service {
	out := mesh.Service{Namespace: name.Namespace, Name: name.Name, Addrs: at, Ports: []mesh.Port{}, Affinity: kube.AffinitySeconds(&svc.Spec)}
	v4, v6 := families(svc, kube.ClusterIPs(&svc.Spec))
	for _, p := range svc.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			continue
		}
		port := mesh.Port{Port: uint16(p.Port), Name: p.Name, Protocol: kube.Protocol(p.AppProtocol, p.Name), Endpoints: []mesh.Endpoint{}}
		for _, v := range pods {
			if !selects(svc, v.pod) || !(Ready(v.pod) || svc.Spec.PublishNotReadyAddresses && !kube.Ended(v.pod)) {
				continue
			}
			target, ok := targetPort(p, v.pod)
			if !ok {
				continue
			}
			for _, a := range v.addrs {
				if a.Is4() && !v4 || a.Is6() && !v6 {
					continue
				}
				port.Endpoints = append(port.Endpoints, mesh.Endpoint{Addr: netip.AddrPortFrom(a, target), Workload: workloadUID(v.pod)})
			}
		}
		out.Ports = append(out.Ports, port)
	}
	return out
}

// families says which address families the Service serves: those of its addresses, or those that it asks for, or,
// headless and silent, both.
func families(svc *corev1.Service, addrs []netip.Addr) (v4, v6 bool) {
	for _, a := range addrs {
		v4 = v4 || a.Is4()
		v6 = v6 || a.Is6()
	}
	if len(addrs) == 0 {
		v4 = len(svc.Spec.IPFamilies) == 0 || slices.Contains(svc.Spec.IPFamilies, corev1.IPv4Protocol)
		v6 = len(svc.Spec.IPFamilies) == 0 || slices.Contains(svc.Spec.IPFamilies, corev1.IPv6Protocol)
	}
	return v4, v6
}

func workloadUID(p *corev1.Pod) string {
	switch {
	case p.Spec.HostNetwork:
		return ""
	case p.UID != "":
		return string(p.UID)
	}
	return p.Namespace + "/" + p.Name
}

func selects(svc *corev1.Service, p *corev1.Pod) bool {
	if len(svc.Spec.Selector) == 0 {
		return false // somebody else manages its endpoints
	}
	for k, v := range svc.Spec.Selector {
		if have, ok := p.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// targetPort resolves the port in this pod: a name may mean another number in every pod.
func targetPort(sp corev1.ServicePort, p *corev1.Pod) (uint16, bool) {
	if sp.TargetPort.Type == intstr.Int {
		if sp.TargetPort.IntVal == 0 {
			return uint16(sp.Port), true
		}
		return uint16(sp.TargetPort.IntVal), true
	}
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			for _, cp := range list[i].Ports {
				if cp.Name == sp.TargetPort.StrVal && (cp.Protocol == "" || cp.Protocol == corev1.ProtocolTCP) {
					return uint16(cp.ContainerPort), true
				}
			}
		}
	}
	return 0, false
}
