// Package discovery turns Kubernetes objects into the snapshot that proxies act on.
package discovery

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
)

// Options say whose snapshot it is.
type Options struct {
	Node        string
	TrustDomain string
	// LocalAddrs are the addresses that pods of this node got from the CNI plugin; they win over status.podIPs.
	LocalAddrs map[manifest.Name][]netip.Addr
}

// Build makes the snapshot of o; its Version is 0. The result is in a fixed order: equal input, equal output.
func Build(o *manifest.Objects, opt Options) *node.Snapshot {
	s := &node.Snapshot{TrustDomain: opt.TrustDomain, Node: opt.Node, Workloads: make([]mesh.Workload, 0, len(o.Pods)), Services: []mesh.Service{}}
	pods := make([]podView, 0, len(o.Pods))
	for name, p := range o.Pods {
		pods = append(pods, podView{name: name, pod: p, addrs: addresses(name, p, opt)})
	}
	slices.SortFunc(pods, func(a, b podView) int { return a.name.Compare(b.name) })
	for _, v := range pods {
		// A pod on the host's network shares its addresses: no address of it names a workload.
		if !v.pod.Spec.HostNetwork && !kube.Ended(v.pod) {
			w := Workload(o, v.pod, opt.Node)
			w.Addrs = v.addrs
			s.Workloads = append(s.Workloads, w)
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(o.Services), manifest.Name.Compare) {
		if svc := o.Services[name]; svc.Spec.Type != corev1.ServiceTypeExternalName {
			s.Services = append(s.Services, services(name, svc, inNamespace(pods, name.Namespace), opt.Node)...)
		}
	}
	return s
}

// inNamespace are those of the pods, which are in order, that are in a namespace.
func inNamespace(pods []podView, namespace string) []podView {
	first, _ := slices.BinarySearchFunc(pods, namespace, func(v podView, n string) int { return strings.Compare(v.name.Namespace, n) })
	n := slices.IndexFunc(pods[first:], func(v podView) bool { return v.name.Namespace != namespace })
	if n < 0 {
		return pods[first:]
	}
	return pods[first : first+n]
}

// NextVersion is a version greater than last, and greater than any that an earlier process of this node gave out,
// provided that the clock did not go back: snapshots are rarer than one in a microsecond.
func NextVersion(last uint64, now time.Time) uint64 {
	return max(last+1, uint64(now.UnixMicro()))
}

type podView struct {
	name  manifest.Name
	pod   *corev1.Pod
	addrs []netip.Addr
}

// Local reports whether p runs, or will run, on node.
func Local(p *corev1.Pod, node string) bool {
	return p.Spec.NodeName == "" || p.Spec.NodeName == node
}

func addresses(name manifest.Name, p *corev1.Pod, opt Options) []netip.Addr {
	if Local(p, opt.Node) && !p.Spec.HostNetwork {
		if a := opt.LocalAddrs[name]; len(a) > 0 {
			return a
		}
	}
	var out []netip.Addr
	add := func(s string) {
		if a, err := netip.ParseAddr(s); err == nil && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, ip := range p.Status.PodIPs {
		add(ip.IP)
	}
	add(p.Status.PodIP)
	return out
}

// Workload describes the pod p, without addresses: who it is, and what the labels and annotations of the pod and its
// namespace and the MeshPolicy say of it, in this order of precedence.
func Workload(o *manifest.Objects, p *corev1.Pod, thisNode string) mesh.Workload {
	w := mesh.Workload{
		UID: string(p.UID), Namespace: p.Namespace, Name: p.Name,
		ServiceAccount: p.Spec.ServiceAccountName, Owner: kube.Owner(p), Node: p.Spec.NodeName,
	}
	if w.UID == "" {
		w.UID = p.Namespace + "/" + p.Name
	}
	if w.ServiceAccount == "" {
		w.ServiceAccount = "default"
	}
	if w.Node == "" {
		w.Node = thisNode
	}
	var namespace kube.Said
	if n := o.Namespaces[p.Namespace]; n != nil {
		namespace = kube.Says(n)
	}
	var policy *v1alpha1.MeshPolicySpec
	if o.Policy != nil {
		policy = &o.Policy.Spec
	}
	set := kube.Settle(kube.Says(p), namespace, policy)
	w.Meshed, w.Mode, w.Down = set.Meshed && !p.Spec.HostNetwork, set.Mode, set.Down
	return w
}

// Ready reports whether p takes part in Services: it is not going away, and no Ready condition says otherwise.
func Ready(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil || kube.Ended(p) {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return true
}
