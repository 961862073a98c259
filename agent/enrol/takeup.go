package enrol

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"conduit.io/conduit/agent/cnicache"
	"conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/agent/podnet"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/podapi"

	corev1 "k8s.io/api/core/v1"
)

// Stray says why a pod that has a network was not taken up: no plugin has told of it, and it was not found.
type Stray struct {
	Reason  string // in CamelCase
	Message string
}

// Strays are the pods of this node that have a network and were not taken up.
func (m *Manager) Strays() map[manifest.Name]Stray {
	m.lock()
	defer m.mu.Unlock()
	out := make(map[manifest.Name]Stray, len(m.strays))
	for name, s := range m.strays {
		out[name] = s
	}
	return out
}

// takeUp finds the pods of which no plugin has told, because they ran before it was in place or their attachments are lost, and
// makes them like any other. Who a namespace belongs to is the container runtime's word alone: a pod that may change its
// interfaces can give itself any address. Strays are looked for again at inspections only.
func (m *Manager) takeUp(inspection bool) {
	if m.cfg.Records == nil {
		return
	}
	objects, _ := m.cfg.Objects.Objects()
	strangers := m.strangers(objects)
	look := inspection && len(strangers)+len(m.deleted) > 0
	for name := range strangers {
		_, stray := m.strays[name]
		look = look || !stray
	}
	for name := range m.strays {
		if strangers[name] == nil {
			delete(m.strays, name)
		}
	}
	if !look {
		return
	}
	records, err := m.cfg.Records()
	if err == nil {
		m.forgetDeleted(records)
	}
	for name, d := range strangers {
		a, why := m.locate(d, records)
		if a != nil {
			why = m.take(objects, d, a)
		} else if err != nil {
			why.Message += fmt.Sprintf(" (%v)", err)
		}
		if why == (Stray{}) {
			delete(m.strays, name)
			continue
		}
		// Manifests describe pods before they are made.
		if w := discovery.Workload(objects, d, m.cfg.Node); w.Meshed && m.strays[name] != why && len(addresses(d)) > 0 {
			m.cfg.Log.Warn("pod cannot be enrolled", "pod", name.String(), "reason", why.Reason, "found", why.Message)
		}
		m.strays[name] = why
	}
}

// forgetDeleted forgets the attachments that were deleted and of which the runtime has no record any more. Until then they are
// not found again: the runtime removes the record when all plugins are done with a DEL, and the namespace after that.
func (m *Manager) forgetDeleted(records []cnicache.Record) {
	left := map[store.Key]bool{}
	for i := range records {
		if k := keyOf(&records[i]); m.deleted[k] {
			left[k] = true
		}
	}
	m.deleted = left
}

func keyOf(r *cnicache.Record) store.Key {
	return store.Key{ContainerID: r.ContainerID, IfName: r.IfName}
}

// strangers are the pods of this node that have a network of their own, and of which nothing is known.
func (m *Manager) strangers(objects *manifest.Objects) map[manifest.Name]*corev1.Pod {
	out := map[manifest.Name]*corev1.Pod{}
	for name, d := range objects.Pods {
		// Before the kubelet has said its addresses its network is being made, and ADD tells of it; manifests say none at all.
		making := d.UID != "" && len(addresses(d)) == 0
		if !making && !d.Spec.HostNetwork && !kube.Ended(d) && discovery.Local(d, m.cfg.Node) && decided(objects, d) {
			out[name] = d
		}
	}
	for _, p := range m.pods {
		for _, a := range p.attachments {
			name := manifest.Name{Namespace: a.Namespace, Name: a.Pod}
			if d := out[name]; d != nil && sameUID(a.PodUID, d) {
				delete(out, name)
			}
		}
	}
	return out
}

func sameUID(uid string, d *corev1.Pod) bool { return uid == "" || d.UID == "" || uid == string(d.UID) }

func addresses(d *corev1.Pod) (out []netip.Addr) {
	for _, ip := range d.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// locate finds the one attachment of the pod that is alive. Where two namespaces could be it, none is.
func (m *Manager) locate(d *corev1.Pod, records []cnicache.Record) (found *store.Attachment, why Stray) {
	why = Stray{"NetworkNotFound", "the container runtime has no record of its network, which was made before Conduit's plugin was in place: delete the pod, so that it is made anew"}
	for i := range records {
		r := &records[i]
		if r.Namespace != d.Namespace || r.Pod != d.Name || !sameUID(r.PodUID, d) || m.deleted[keyOf(r)] {
			continue
		}
		a, err := m.proven(d, r)
		switch {
		case err != nil:
			if found == nil {
				why = Stray{"NetworkNotFound", "the container runtime's record of its network does not fit: " + err.Error() + "; delete the pod, so that it is made anew"}
			}
		case found == nil || found.Cookie == a.Cookie && a.IfName < found.IfName:
			found = a
		case found.Cookie != a.Cookie:
			return nil, Stray{"NetworkAmbiguous", fmt.Sprintf("two network namespaces could be its own, %s and %s: delete the pod, so that it is made anew", found.Netns, a.Netns)}
		}
	}
	if found != nil {
		return found, Stray{}
	}
	return nil, why
}

// proven is the attachment that r records, if the namespace there is the pod's: it has the addresses that the kubelet has published.
func (m *Manager) proven(d *corev1.Pod, r *cnicache.Record) (*store.Attachment, error) {
	req := &podapi.Request{Network: r.Network, ContainerID: r.ContainerID, IfName: r.IfName, Netns: r.Netns,
		Namespace: r.Namespace, Pod: r.Pod, PodUID: r.PodUID, Addrs: r.Addrs}
	if e := identify(req); e != nil {
		return nil, errors.New(e.Message)
	}
	switch {
	case r.Netns == "":
		return nil, errors.New("it does not say which network namespace")
	case strings.HasPrefix(filepath.Clean(r.Netns), "/proc/"): // ADD is about processes that are there
		return nil, errors.New(r.Netns + " is that of a process, which may be another one by now")
	}
	a, netns, e := m.attachment(req)
	if e != nil {
		return nil, errors.New(e.Message)
	}
	defer netns.Close()
	for _, want := range addresses(d) {
		if !slices.Contains(a.Addrs, want) {
			return nil, fmt.Errorf("container %s was given %v, and the pod has %s", short(r.ContainerID), r.Addrs, want)
		}
	}
	if len(a.Addrs) == 0 {
		return nil, fmt.Errorf("container %s was given no address", short(r.ContainerID))
	}
	return a, podnet.Holds(netns, r.IfName, a.Addrs)
}

func short(id string) string { return id[:min(len(id), 13)] }

// take makes the attachment known. What the kernel has of it already, of a pod whose record was lost, is taken over.
func (m *Manager) take(objects *manifest.Objects, d *corev1.Pod, a *store.Attachment) Stray {
	if other := m.pods[a.Cookie]; other != nil {
		return Stray{"NetworkAmbiguous", fmt.Sprintf("its network namespace %s is also that of pod %s", a.Netns, other.name())}
	}
	p := &pod{cookie: a.Cookie, attachments: map[store.Key]*store.Attachment{a.Key(): a}, workload: discovery.Workload(objects, d, m.cfg.Node)}
	if m.alone[a.Cookie] {
		enrolled, err := m.cfg.Datapath.Enrolled()
		if err != nil {
			return Stray{"NetworkNotFound", err.Error()}
		}
		p.kernel, p.enrolled = enrolled[a.Cookie]
		p.kernelAddrs, p.leaving = p.kernel.Addrs, !p.enrolled
	}
	a.PodUID, a.Workload = string(d.UID), p.workload
	if err := m.cfg.Store.Put(a); err != nil {
		return Stray{"NetworkNotFound", err.Error()}
	}
	m.pods[a.Cookie] = p
	delete(m.alone, a.Cookie)
	m.cfg.Log.Info("pod found that ran before the plugin told of its like", "pod", p.name().String(), "netns", a.Netns, "container", short(a.ContainerID))
	return Stray{}
}
