package enrol

import (
	"context"
	"net/netip"

	"conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/api/podapi"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
)

// Objects is where this node's pods are described: manifests in a directory (package manifest), or the API server
// (package kube). It is safe for concurrent use.
type Objects interface {
	// Objects is what is known now, and is immutable. The number grows with every change.
	Objects() (*manifest.Objects, uint64)
	// Find looks once more for a pod, and its Namespace, that are not known yet, and reports whether anything has changed.
	Find(ctx context.Context, pod manifest.Name) bool
	// Missing says who does not know a pod (noPod), or its Namespace, and what to do about it.
	Missing(pod manifest.Name, noPod, noNamespace bool) (who, hint string)
	// Stale says what to do about a Pod that is not the one which the runtime starts.
	Stale() (hint string)
}

// Directory knows who has the addresses that this node's pods talk to, and tells the Manager's Kick when its View has
// changed. It is safe for concurrent use, and none of its methods blocks.
type Directory interface {
	Reset(all []netip.AddrPort) // the proxy's interest, when a proxy was found
	Lookup(*node.Lookup)        // how it changed since
	Local(all []netip.Addr)     // addresses of this node's pods, which are always of interest: for what Services declare of them
	View() *discovery.View
	Told() bool // the View is not empty for want of an answer
}

// describe finds the pod's description. One that was written just now may not have been read yet: it is looked for once
// more. A pod that nothing describes is refused: nobody knows whether it may speak in the clear.
func (m *Manager) describe(ctx context.Context, a *store.Attachment) (*corev1.Pod, *podapi.Error) {
	pod, e := m.lookUp(a)
	if e == nil {
		return pod, nil
	}
	if m.cfg.Objects.Find(ctx, manifest.Name{Namespace: a.Namespace, Name: a.Pod}) {
		m.Kick()
	}
	return m.lookUp(a)
}

func (m *Manager) lookUp(a *store.Attachment) (*corev1.Pod, *podapi.Error) {
	objects, _ := m.cfg.Objects.Objects()
	name := manifest.Name{Namespace: a.Namespace, Name: a.Pod}
	pod := objects.Pods[name]
	noNamespace := objects.Namespaces[a.Namespace] == nil
	switch {
	case pod == nil && noNamespace:
		who, hint := m.cfg.Objects.Missing(name, true, true)
		return nil, fail(podapi.CodeUnknownPod, hint, "namespace %q is unknown: %s", a.Namespace, who)
	case pod == nil:
		who, hint := m.cfg.Objects.Missing(name, true, false)
		return nil, fail(podapi.CodeUnknownPod, hint, "pod %s is unknown: %s", name, who)
	case !decided(objects, pod): // the namespace's label decides for a pod without one
		who, hint := m.cfg.Objects.Missing(name, false, true)
		return nil, fail(podapi.CodeUnknownPod, hint, "namespace %q of pod %s is unknown: %s", a.Namespace, name, who)
	case !discovery.Local(pod, m.cfg.Node):
		return nil, fail(podapi.CodeUnknownPod, "correct spec.nodeName, or start the agent with --node-name "+pod.Spec.NodeName,
			"pod %s belongs to node %q, and this agent is node %q", name, pod.Spec.NodeName, m.cfg.Node)
	case pod.UID != "" && a.PodUID != "" && string(pod.UID) != a.PodUID:
		return nil, fail(podapi.CodeUnknownPod, m.cfg.Objects.Stale(),
			"pod %s is described with UID %s, but the runtime starts the one with UID %s", name, pod.UID, a.PodUID)
	}
	return pod, nil
}

// decided reports whether it is said if the pod is part of the mesh: by its own label, or its Namespace, which only
// "default" may lack.
func decided(o *manifest.Objects, p *corev1.Pod) bool {
	return kube.Says(p).Mesh != "" || o.Namespaces[p.Namespace] != nil || p.Namespace == corev1.NamespaceDefault
}

// describeOwn has a snapshot say of this node's pods what the node knows best. Those that nothing describes, because the API server was not
// read yet, are as they were last: without them they would be outside of the mesh for each other, and get plaintext. And those that are
// described as members are to be reached by mTLS when the kernel steers them, and not before.
func (m *Manager) describeOwn(s *node.Snapshot, o *manifest.Objects, own map[manifest.Name]*pod) {
	for i := range s.Workloads {
		w := &s.Workloads[i]
		p := own[manifest.Name{Namespace: w.Namespace, Name: w.Name}]
		switch {
		case w.Node != m.cfg.Node:
		case p != nil && p.workload.UID == w.UID:
			w.Meshed = p.reachable()
		case m.cfg.Directory != nil: // then others are told the same
			w.Meshed = w.Meshed && w.Mode == mesh.Strict
		}
	}
	for _, p := range m.sorted() {
		if name := p.name(); own[name] == p && o.Pods[name] == nil && len(p.workload.Addrs) > 0 {
			w := p.workload
			w.Meshed = p.reachable()
			s.Workloads = append(s.Workloads, w)
		}
	}
}

// reachable reports whether the pod is to be reached by mTLS: the kernel steers it, or it takes nothing else. One that is being added is
// nobody's yet, and the proxy is told once.
func (p *pod) reachable() bool {
	return p.workload.Meshed && (p.enrolled || p.adding || p.workload.Mode == mesh.Strict)
}

// redescribe has p be what w says. What an enrolled pod does from now on with plaintext, and without a proxy, is told.
func (m *Manager) redescribe(p *pod, w mesh.Workload) {
	if was := p.workload; p.enrolled && w.Meshed && (was.Mode != w.Mode || was.Down != w.Down) {
		m.cfg.Log.Info("pod has other settings", "pod", p.name().String(), "mode", w.Mode, "agent_down", w.Down, "mode_before", was.Mode, "agent_down_before", was.Down)
	}
	p.workload = w
}
