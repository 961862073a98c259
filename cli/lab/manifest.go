package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ktypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// manifest is one file of the agents' manifest directories.
type manifest struct {
	yaml []byte
	// ownYAML is what the pod's own node sees instead: there the addresses come from CNI, not from the status.
	own     *Node
	ownYAML []byte
}

func (m manifest) forNode(n *Node) []byte {
	if m.own == n {
		return m.ownYAML
	}
	return m.yaml
}

// WriteManifest writes a file of that name into every node's manifest directory, now and for nodes added later.
// Writing it again replaces it atomically.
func (l *Lab) WriteManifest(file string, content []byte) error {
	return l.put(file, manifest{yaml: content})
}

func (l *Lab) put(file string, m manifest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.manifests[file] = m
	var errs []error
	for _, n := range l.nodes {
		errs = append(errs, n.putManifest(file, m.forNode(n)))
	}
	return errors.Join(errs...)
}

// RemoveManifest removes a file from every node's manifest directory.
func (l *Lab) RemoveManifest(file string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.manifests, file)
	var errs []error
	for _, n := range l.nodes {
		errs = append(errs, n.RemoveManifest(file))
	}
	return errors.Join(errs...)
}

// WriteManifest writes a file into this node's manifest directory alone.
func (n *Node) WriteManifest(file string, content []byte) error { return n.putManifest(file, content) }

// RemoveManifest removes a file from this node's manifest directory, if it is there.
func (n *Node) RemoveManifest(file string) error {
	err := os.Remove(filepath.Join(n.ManifestDir(), file))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// putManifest writes beside the watched directory and renames: the agent never sees half a file.
func (n *Node) putManifest(file string, content []byte) error {
	if content == nil {
		return nil
	}
	if filepath.Base(file) != file {
		return fmt.Errorf("write manifest %q: want a file name", file)
	}
	tmp, err := os.CreateTemp(n.dir, "manifest-*")
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(n.ManifestDir(), file))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write manifest: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// WriteNamespace writes a Namespace. Writing it again with other labels enrols or un-enrols its running pods.
func (l *Lab) WriteNamespace(name string, labels, annotations map[string]string) error {
	return l.writeObject("namespace-"+name+".yaml", &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations},
	})
}

// WriteMeshPolicy writes the one MeshPolicy: mtlsMode is PERMISSIVE or STRICT, agentDown Closed or Open; empty leaves
// the default.
func (l *Lab) WriteMeshPolicy(mtlsMode, agentDown string) error {
	spec := map[string]any{}
	if mtlsMode != "" {
		spec["mtls"] = map[string]string{"mode": mtlsMode}
	}
	if agentDown != "" {
		spec["agentDown"] = agentDown
	}
	return l.writeObject("meshpolicy.yaml", map[string]any{"apiVersion": "conduit.io/v1alpha1", "kind": "MeshPolicy",
		"metadata": map[string]string{"name": "default"}, "spec": spec})
}

func (l *Lab) writeObject(file string, obj any) error {
	b, err := yaml.Marshal(obj)
	if err != nil {
		return fmt.Errorf("encode %s: %w", file, err)
	}
	return l.WriteManifest(file, b)
}

// ServicePort is a port of a Service.
type ServicePort struct {
	Name        string
	Port        int32
	TargetPort  string // number or name; empty means Port
	AppProtocol string // such as http, kubernetes.io/h2c, tcp; empty leaves it undeclared
}

// Service describes a Service manifest.
type Service struct {
	Namespace, Name string
	Selector        map[string]string
	ClusterIPs      []netip.Addr // none makes it headless; see ServiceIPs
	Ports           []ServicePort
}

// ServiceIPs are the cluster addresses that the address plan has for the i-th service (1 to 65,000), IPv4 first.
// They are not routed anywhere: only the mesh serves them.
func ServiceIPs(i int) []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{10, 224, byte(i >> 8), byte(i)}),
		netip.MustParseAddr(fmt.Sprintf("fd42:c0d2::%x", i)),
	}
}

// WriteService writes a Service.
func (l *Lab) WriteService(s Service) error {
	obj := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name},
		Spec:       corev1.ServiceSpec{Selector: s.Selector, ClusterIP: corev1.ClusterIPNone},
	}
	for i, ip := range s.ClusterIPs {
		if i == 0 {
			obj.Spec.ClusterIP = ip.String()
		}
		obj.Spec.ClusterIPs = append(obj.Spec.ClusterIPs, ip.String())
		family := corev1.IPv4Protocol
		if ip.Is6() {
			family = corev1.IPv6Protocol
		}
		obj.Spec.IPFamilies = append(obj.Spec.IPFamilies, family)
	}
	for _, p := range s.Ports {
		port := corev1.ServicePort{Name: p.Name, Port: p.Port, Protocol: corev1.ProtocolTCP}
		if p.TargetPort != "" {
			port.TargetPort = intstr.Parse(p.TargetPort)
		}
		if p.AppProtocol != "" {
			port.AppProtocol = &p.AppProtocol
		}
		obj.Spec.Ports = append(obj.Spec.Ports, port)
	}
	return l.writeObject("service-"+s.Namespace+"."+s.Name+".yaml", obj)
}

func (p *Pod) manifestFile() string { return "pod-" + p.Namespace + "." + p.PodName + ".yaml" }

// publishPod writes the pod's manifest, with its addresses, to the nodes that it does not run on.
func (l *Lab) publishPod(p *Pod) error {
	if p.opts.NoManifest {
		return nil
	}
	return l.put(p.manifestFile(), podManifest(p))
}

// podManifest describes p as far as it is known: before ADD it has no address, so no other node can see it.
func podManifest(p *Pod) manifest {
	obj := podObject(p)
	own := mustYAML(obj)
	if len(p.IPs) == 0 {
		return manifest{own: p.Node, ownYAML: own}
	}
	obj.Status.Phase = corev1.PodRunning
	obj.Status.HostIP = p.Node.Addrs()[0].String()
	obj.Status.PodIP = p.IPs[0].String()
	for _, ip := range p.IPs {
		obj.Status.PodIPs = append(obj.Status.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	return manifest{yaml: mustYAML(obj), own: p.Node, ownYAML: own}
}

func podObject(p *Pod) *corev1.Pod {
	account := p.opts.ServiceAccount
	if account == "" {
		account = "default"
	}
	obj := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.PodName, UID: ktypes.UID(p.uid),
			Labels: p.opts.Labels, Annotations: p.opts.Annotations},
		Spec: corev1.PodSpec{NodeName: p.Node.name, ServiceAccountName: account,
			Containers: []corev1.Container{{Name: "app", Image: "none"}}},
	}
	if kind, name, ok := strings.Cut(p.opts.Owner, "/"); ok {
		controller := true
		obj.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: name,
			UID: ktypes.UID("uid-" + name), Controller: &controller}}
	}
	for name, port := range p.opts.Ports {
		obj.Spec.Containers[0].Ports = append(obj.Spec.Containers[0].Ports,
			corev1.ContainerPort{Name: name, ContainerPort: port, Protocol: corev1.ProtocolTCP})
	}
	if port := p.opts.Probe; port != 0 {
		handler := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}}
		obj.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: handler}
	}
	slices.SortFunc(obj.Spec.Containers[0].Ports, func(a, b corev1.ContainerPort) int { return strings.Compare(a.Name, b.Name) })
	return obj
}

// mustYAML encodes a value made of plain Kubernetes types, which cannot fail.
func mustYAML(obj any) []byte {
	b, err := yaml.Marshal(obj)
	if err != nil {
		panic(err)
	}
	return b
}
