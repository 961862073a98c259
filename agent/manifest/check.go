package manifest

import (
	"net/netip"
	"strconv"
	"strings"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// at notes a fault at the field path, or at the nearest enclosing field that the file has.
func (d *decoder) at(path, format string, args ...any) {
	line := 0
	for p := path; line == 0; {
		line = d.lines[p]
		i := strings.LastIndexAny(p, ".[")
		if i < 0 {
			line = max(line, d.lines[p], d.lines[""])
			break
		}
		p = p[:i]
	}
	d.fault(line, path, format, args...)
}

// check sets the object's name and looks at everything that Conduit relies on.
func (d *decoder) check(o *object, m *metav1.ObjectMeta, path string) {
	meta := join(path, "metadata")
	o.name.Name = m.Name
	valid := validation.IsDNS1123Subdomain
	if o.kind == "Service" || o.kind == "Namespace" {
		valid = validation.IsDNS1123Label // RFC 1123; Kubernetes allows leading digits in Services since 1.34
	}
	d.bad(join(meta, "name"), m.Name, valid(m.Name))
	switch o.kind {
	case "Pod", "Service":
		if m.Namespace == "" {
			m.Namespace = metav1.NamespaceDefault
		}
		d.bad(join(meta, "namespace"), m.Namespace, validation.IsDNS1123Label(m.Namespace))
		o.name.Namespace = m.Namespace
	default:
		if m.Namespace != "" {
			d.at(join(meta, "namespace"), "a %s belongs to no namespace", o.kind)
		}
	}
	d.labels(join(meta, "labels"), m.Labels)
	if o.kind == "Pod" || o.kind == "Namespace" {
		d.oneOf(join(join(meta, "labels"), kube.LabelMesh), m.Labels, kube.LabelMesh, kube.Enabled, kube.Disabled)
		notes := join(meta, "annotations")
		d.oneOf(join(notes, kube.AnnotationMode), m.Annotations, kube.AnnotationMode, string(mesh.Permissive), string(mesh.Strict))
		d.oneOf(join(notes, kube.AnnotationDown), m.Annotations, kube.AnnotationDown, string(mesh.DownClosed), string(mesh.DownOpen))
		d.unknownKeys(join(meta, "labels"), m.Labels, kube.LabelMesh)
		d.unknownKeys(notes, m.Annotations, kube.AnnotationMode, kube.AnnotationDown)
	}
	spec := join(path, "spec")
	switch body := o.body.(type) {
	case *corev1.Pod:
		d.pod(body, path)
	case *corev1.Service:
		d.service(body, spec)
	case *v1alpha1.MeshPolicy:
		if m.Name != "default" {
			d.at(join(meta, "name"), "the one MeshPolicy is called %q, not %q", v1alpha1.MeshPolicyName, m.Name)
		}
		d.word(join(join(spec, "mtls"), "mode"), body.Spec.MTLS.Mode, string(mesh.Permissive), string(mesh.Strict))
		d.word(join(spec, "agentDown"), body.Spec.AgentDown, string(mesh.DownClosed), string(mesh.DownOpen))
		d.word(join(spec, "enrolment"), body.Spec.Enrolment, v1alpha1.EnrolmentLabelled, v1alpha1.EnrolmentNone)
	}
}

func (d *decoder) bad(path, value string, problems []string) {
	if value == "" {
		d.at(path, "is required")
	} else if len(problems) > 0 {
		d.at(path, "%q: %s", value, problems[0])
	}
}

func (d *decoder) labels(path string, labels map[string]string) {
	for k, v := range labels {
		if p := validation.IsQualifiedName(k); len(p) > 0 {
			d.at(join(path, k), "label name %q: %s", k, p[0])
		}
		if p := validation.IsValidLabelValue(v); len(p) > 0 {
			d.at(join(path, k), "label value %q: %s", v, p[0])
		}
	}
}

func (d *decoder) oneOf(path string, m map[string]string, key string, allowed ...string) {
	if v, ok := m[key]; ok {
		if v == "" {
			v = " " // present and empty is a mistake, absent is not
		}
		d.word(path, v, allowed...)
	}
}

func (d *decoder) word(path, v string, allowed ...string) {
	if v == "" {
		return
	}
	for _, a := range allowed {
		if v == a {
			return
		}
	}
	d.at(path, "want %s, got %q", strings.Join(allowed, " or "), strings.TrimSpace(v))
}

// unknownKeys refuses names under conduit.io/ that mean nothing: a misspelt setting must not be passed over.
func (d *decoder) unknownKeys(path string, m map[string]string, known ...string) {
next:
	for k := range m {
		if !strings.HasPrefix(k, "conduit.io/") {
			continue
		}
		for _, want := range known {
			if k == want {
				continue next
			}
		}
		d.at(join(path, k), "Conduit knows no such name here; it knows %s", strings.Join(known, " and "))
	}
}

func (d *decoder) pod(p *corev1.Pod, path string) {
	spec := join(path, "spec")
	if sa := p.Spec.ServiceAccountName; sa != "" {
		d.bad(join(spec, "serviceAccountName"), sa, validation.IsDNS1123Subdomain(sa))
	}
	for i := range p.Spec.Containers {
		d.containerPorts(join(spec, "containers")+"["+strconv.Itoa(i)+"].ports", p.Spec.Containers[i].Ports)
	}
	for i := range p.Spec.InitContainers {
		d.containerPorts(join(spec, "initContainers")+"["+strconv.Itoa(i)+"].ports", p.Spec.InitContainers[i].Ports)
	}
	status := join(path, "status")
	if p.Status.PodIP != "" {
		d.address(join(status, "podIP"), p.Status.PodIP)
	}
	for i, ip := range p.Status.PodIPs {
		d.address(join(status, "podIPs")+"["+strconv.Itoa(i)+"].ip", ip.IP)
	}
}

func (d *decoder) containerPorts(path string, ports []corev1.ContainerPort) {
	for i, p := range ports {
		sub := path + "[" + strconv.Itoa(i) + "]"
		d.port(join(sub, "containerPort"), p.ContainerPort)
		if p.Name != "" {
			d.bad(join(sub, "name"), p.Name, validation.IsValidPortName(p.Name))
		}
		d.word(join(sub, "protocol"), string(p.Protocol), "TCP", "UDP", "SCTP")
	}
}

func (d *decoder) port(path string, port int32) {
	if port < 1 || port > 65535 {
		d.at(path, "want a port from 1 to 65535, got %d", port)
	}
}

func (d *decoder) address(path, s string) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		d.at(path, "%q is no IP address", s)
	case a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast():
		d.at(path, "%q is no address that a pod or Service can have", s)
	}
}

func (d *decoder) service(s *corev1.Service, spec string) {
	for i, p := range s.Spec.Ports {
		sub := join(spec, "ports") + "[" + strconv.Itoa(i) + "]"
		d.port(join(sub, "port"), p.Port)
		d.word(join(sub, "protocol"), string(p.Protocol), "TCP", "UDP", "SCTP")
		switch {
		case p.Name != "":
			d.bad(join(sub, "name"), p.Name, validation.IsDNS1123Label(p.Name))
		case len(s.Spec.Ports) > 1:
			d.at(join(sub, "name"), "is required in a Service with several ports")
		}
		switch tp := p.TargetPort; {
		case tp.Type == intstr.String:
			d.bad(join(sub, "targetPort"), tp.StrVal, validation.IsValidPortName(tp.StrVal))
		case tp.IntVal != 0:
			d.port(join(sub, "targetPort"), tp.IntVal)
		}
	}
	d.word(join(spec, "type"), string(s.Spec.Type), "ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
	if ip := s.Spec.ClusterIP; ip != "" && ip != corev1.ClusterIPNone {
		d.address(join(spec, "clusterIP"), ip)
	}
	for i, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			d.address(join(spec, "clusterIPs")+"["+strconv.Itoa(i)+"]", ip)
		}
	}
	for i, ip := range s.Spec.ExternalIPs {
		d.address(join(spec, "externalIPs")+"["+strconv.Itoa(i)+"]", ip)
	}
	for i, r := range s.Spec.LoadBalancerSourceRanges {
		if _, err := netip.ParsePrefix(r); err != nil {
			d.at(join(spec, "loadBalancerSourceRanges")+"["+strconv.Itoa(i)+"]", "%q is no prefix, as 10.0.0.0/8", r)
		}
	}
	d.word(join(spec, "sessionAffinity"), string(s.Spec.SessionAffinity), "None", "ClientIP")
	if t := kube.AffinitySeconds(&s.Spec); s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP && (t < 1 || t > 86400) {
		d.at(join(join(join(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds"), "want 1 to 86400, got %d", int32(t))
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		d.word(join(spec, "internalTrafficPolicy"), string(*p), "Cluster", "Local")
	}
	d.labels(join(spec, "selector"), s.Spec.Selector)
}
