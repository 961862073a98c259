package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unique"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
	discoveryk8s "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Name names a namespaced object; Namespace is empty for others.
type Name struct {
	Namespace, Name string
}

// String is namespace/name.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Kind is one of the kinds of objects that the index is made of.
type Kind string

// The kinds.
const (
	Pods       Kind = "pods"
	Namespaces Kind = "namespaces"
	Services   Kind = "services"
	Slices     Kind = "endpointslices"
	Nodes      Kind = "nodes"
	Policies   Kind = "meshpolicies"
)

// Record is what the index keeps of a Kubernetes object: a fraction of it. Records are immutable.
type Record interface {
	Kind() Kind
	Named() Name
}

type pod struct {
	name        Name
	uid         string
	account     string
	owner       string
	node        string
	addrs       []netip.Addr
	bindings    []binding
	hostNetwork bool
	ended       bool
	said        kube.Said
	slips       *[]kube.Slip                       // nil for most
	enrolled    unique.Handle[corev1.PodCondition] // without times; zero: there is no such condition
	wired       unique.Handle[corev1.PodCondition] // the same; agents' alone have it
}

// enrolment is what the pod's condition says.
func (p *pod) enrolment() discoveryv1.Workload_Enrolment {
	switch c := valueOf(p.enrolled); {
	case c.Type == "":
		return discoveryv1.Workload_ENROLMENT_UNSPECIFIED
	case c.Status == corev1.ConditionTrue:
		return discoveryv1.Workload_ENROLMENT_ENROLLED
	}
	return discoveryv1.Workload_ENROLMENT_NOT_ENROLLED
}

// valueOf is the condition; zero: there is none.
func valueOf(c unique.Handle[corev1.PodCondition]) corev1.PodCondition {
	if c == (unique.Handle[corev1.PodCondition]{}) {
		return corev1.PodCondition{}
	}
	return c.Value()
}

type namespace struct {
	name  Name
	uid   string
	said  kube.Said
	slips *[]kube.Slip
}

type node struct {
	name         Name
	zone, region string
	addrs        []netip.Addr
	internal     []netip.Addr // those of addrs at which NodePorts are: others may not be on the node itself
}

type policy struct {
	name Name
	spec v1alpha1.MeshPolicySpec
}

type service struct {
	name Name
	msg  *discoveryv1.Service
	vips []netip.Addr // cluster, external and load balancers' addresses
	own  int          // how many of them the cluster has given it: the first ones
}

type slice struct {
	name      Name
	service   Name
	ports     []*discoveryv1.EndpointPort // TCP
	endpoints []target
}

// target is one endpoint of a slice.
type target struct {
	addr                        netip.Addr
	pod                         Name   // targetRef; zero: none
	uid                         string // of pod
	ready, serving, terminating bool
	node, zone, hostname        string
	hintZones, hintNodes        []string
}

// Kind and Named are Record's.
func (p *pod) Kind() Kind        { return Pods }
func (p *pod) Named() Name       { return p.name }
func (n *namespace) Kind() Kind  { return Namespaces }
func (n *namespace) Named() Name { return n.name }
func (n *node) Kind() Kind       { return Nodes }
func (n *node) Named() Name      { return n.name }
func (p *policy) Kind() Kind     { return Policies }
func (p *policy) Named() Name    { return p.name }
func (s *service) Kind() Kind    { return Services }
func (s *service) Named() Name   { return s.name }
func (s *slice) Kind() Kind      { return Slices }
func (s *slice) Named() Name     { return s.name }

// shared is s without a copy of its own: nodes, namespaces and accounts are named by many objects.
func shared(s string) string { return unique.Make(s).Value() }

func nameOf(m *metav1.ObjectMeta) Name {
	return Name{Namespace: shared(m.Namespace), Name: m.Name}
}

// Strip makes the record of a Kubernetes object, which it does not keep. A Record is handed through.
func Strip(object any) (Record, error) {
	switch o := object.(type) {
	case Record:
		return o, nil
	case *corev1.Pod:
		return stripPod(o), nil
	case *corev1.Namespace:
		return &namespace{name: Name{Name: shared(o.Name)}, uid: string(o.UID), said: said(o), slips: slips(o)}, nil
	case *corev1.Service:
		return stripService(o), nil
	case *discoveryk8s.EndpointSlice:
		return stripSlice(o), nil
	case *corev1.Node:
		return stripNode(o), nil
	case *v1alpha1.MeshPolicy:
		return &policy{name: Name{Name: o.Name}, spec: o.Spec}, nil
	}
	return nil, fmt.Errorf("discovery knows no %T", object)
}

// said shares the few words that there are.
func said(o metav1.Object) kube.Said {
	s := kube.Says(o)
	return kube.Said{Mesh: shared(s.Mesh), Mode: shared(s.Mode), Down: shared(s.Down)}
}

// slips keeps what is misspelt on an object, and nothing else of it.
func slips(o metav1.Object) *[]kube.Slip {
	found := kube.Slips(o)
	if len(found) == 0 {
		return nil
	}
	for i := range found {
		found[i].Key, found[i].Value = shared(strings.Clone(found[i].Key)), shared(strings.Clone(found[i].Value))
	}
	return &found
}

func stripPod(o *corev1.Pod) *pod {
	p := &pod{name: nameOf(&o.ObjectMeta), uid: string(o.UID), account: shared(o.Spec.ServiceAccountName),
		owner: shared(kube.Owner(o)), node: shared(o.Spec.NodeName), hostNetwork: o.Spec.HostNetwork, ended: kube.Ended(o), said: said(o), slips: slips(o)}
	if p.account == "" {
		p.account = "default"
	}
	for _, ip := range o.Status.PodIPs {
		p.addrs = appendAddr(p.addrs, ip.IP)
	}
	p.addrs = appendAddr(p.addrs, o.Status.PodIP)
	p.bindings = bindings(&o.Spec)
	for i := range o.Status.Conditions {
		switch c := &o.Status.Conditions[i]; c.Type {
		case kube.ConditionEnrolled:
			p.enrolled = timeless(c)
		case kube.ConditionWired:
			p.wired = timeless(c)
		}
	}
	return p
}

// timeless is c without its times: the same of most pods.
func timeless(c *corev1.PodCondition) unique.Handle[corev1.PodCondition] {
	return unique.Make(corev1.PodCondition{Type: c.Type, Status: c.Status, Reason: strings.Clone(c.Reason),
		Message: strings.Clone(c.Message), ObservedGeneration: c.ObservedGeneration})
}

// bindings are the host ports of a pod. On the host's network they are nothing but its own.
func bindings(spec *corev1.PodSpec) (out []binding) {
	if spec.HostNetwork {
		return nil
	}
	for _, containers := range [][]corev1.Container{spec.Containers, spec.InitContainers} {
		for i := range containers {
			for _, p := range containers[i].Ports {
				if p.HostPort == 0 || p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
					continue
				}
				b := binding{port: uint32(p.HostPort), target: uint32(p.ContainerPort)}
				if at, err := netip.ParseAddr(p.HostIP); err == nil && !at.IsUnspecified() {
					b.at = at.Unmap()
				}
				out = append(out, b)
			}
		}
	}
	return out
}

func stripNode(o *corev1.Node) *node {
	n := &node{name: Name{Name: shared(o.Name)}, zone: shared(o.Labels[corev1.LabelTopologyZone]), region: shared(o.Labels[corev1.LabelTopologyRegion])}
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			n.addrs = appendAddr(n.addrs, a.Address)
		}
		if a.Type == corev1.NodeInternalIP {
			n.internal = appendAddr(n.internal, a.Address)
		}
	}
	return n
}

// appendAddr appends what s says, if it says an address that is not there yet, in its only spelling.
func appendAddr(to []netip.Addr, s string) []netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil || slices.Contains(to, a.Unmap()) {
		return to
	}
	return append(to, a.Unmap())
}

var serviceTypes = map[corev1.ServiceType]discoveryv1.Service_Type{
	corev1.ServiceTypeClusterIP: discoveryv1.Service_TYPE_CLUSTER_IP, "": discoveryv1.Service_TYPE_CLUSTER_IP,
	corev1.ServiceTypeNodePort: discoveryv1.Service_TYPE_NODE_PORT, corev1.ServiceTypeLoadBalancer: discoveryv1.Service_TYPE_LOAD_BALANCER,
	corev1.ServiceTypeExternalName: discoveryv1.Service_TYPE_EXTERNAL_NAME,
}

func stripService(o *corev1.Service) *service {
	s := &service{name: nameOf(&o.ObjectMeta)}
	m := &discoveryv1.Service{Key: s.name.String(), Type: serviceTypes[o.Spec.Type], PublishNotReady: o.Spec.PublishNotReadyAddresses}
	s.msg = m
	if m.Type == discoveryv1.Service_TYPE_EXTERNAL_NAME {
		m.ExternalName = o.Spec.ExternalName
		return s
	}
	if o.Spec.ClusterIP == corev1.ClusterIPNone {
		m.Type = discoveryv1.Service_TYPE_HEADLESS
	}
	own, outside := kube.ClusterIPs(&o.Spec), kube.OutsideIPs(o)
	s.vips = append(own, slices.DeleteFunc(outside, func(a netip.Addr) bool { return slices.Contains(own, a) })...)
	s.own = len(own)
	m.ClusterIps, m.ExternalIps, m.LoadBalancerIps = addrBytes(own), addrBytes(s.vips[len(own):]), addrBytes(kube.BalancerIPs(o))
	for _, r := range kube.SourceRanges(o) {
		m.SourceRanges = append(m.SourceRanges, r.String())
	}
	for _, p := range o.Spec.Ports {
		if p.Protocol == corev1.ProtocolTCP || p.Protocol == "" {
			m.Ports = append(m.Ports, &discoveryv1.ServicePort{Port: uint32(p.Port), Name: p.Name, NodePort: uint32(p.NodePort),
				Protocol: protocols[kube.Protocol(p.AppProtocol, p.Name)]})
		}
	}
	m.AffinitySeconds = kube.AffinitySeconds(&o.Spec)
	m.InternalPolicy, m.ExternalPolicy = discoveryv1.Service_TRAFFIC_POLICY_CLUSTER, discoveryv1.Service_TRAFFIC_POLICY_CLUSTER
	if kube.Local(&o.Spec) {
		m.InternalPolicy = discoveryv1.Service_TRAFFIC_POLICY_LOCAL
	}
	if o.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		m.ExternalPolicy = discoveryv1.Service_TRAFFIC_POLICY_LOCAL
	}
	if o.Spec.TrafficDistribution != nil {
		m.TrafficDistribution = *o.Spec.TrafficDistribution
	}
	return s
}

var protocols = map[mesh.Protocol]discoveryv1.Protocol{
	mesh.Detect: discoveryv1.Protocol_PROTOCOL_UNSPECIFIED, mesh.HTTP1: discoveryv1.Protocol_PROTOCOL_HTTP1,
	mesh.HTTP2: discoveryv1.Protocol_PROTOCOL_HTTP2, mesh.Opaque: discoveryv1.Protocol_PROTOCOL_OPAQUE,
}

func addrBytes(addrs []netip.Addr) [][]byte {
	var out [][]byte
	for _, a := range addrs {
		out = append(out, a.AsSlice())
	}
	return out
}

func stripSlice(o *discoveryk8s.EndpointSlice) *slice {
	s := &slice{name: nameOf(&o.ObjectMeta), service: Name{Namespace: shared(o.Namespace), Name: o.Labels[discoveryk8s.LabelServiceName]}}
	for _, p := range o.Ports {
		if p.Port != nil && (p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP) {
			s.ports = append(s.ports, &discoveryv1.EndpointPort{Name: deref(p.Name), Port: uint32(*p.Port)})
		}
	}
	if len(s.ports) == 0 || s.service.Name == "" || o.AddressType == discoveryk8s.AddressTypeFQDN {
		s.ports = nil
		return s // nothing that can be dialled, or nobody's
	}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		t := target{ready: e.Conditions.Ready == nil || *e.Conditions.Ready, terminating: e.Conditions.Terminating != nil && *e.Conditions.Terminating,
			serving: e.Conditions.Serving == nil || *e.Conditions.Serving,
			node:    shared(deref(e.NodeName)), zone: shared(deref(e.Zone)), hostname: deref(e.Hostname)}
		if r := e.TargetRef; r != nil && r.Kind == "Pod" {
			t.pod, t.uid = Name{Namespace: s.name.Namespace, Name: r.Name}, string(r.UID)
		}
		if e.Hints != nil {
			for _, z := range e.Hints.ForZones {
				t.hintZones = append(t.hintZones, shared(z.Name))
			}
			for _, n := range e.Hints.ForNodes {
				t.hintNodes = append(t.hintNodes, shared(n.Name))
			}
		}
		if len(e.Addresses) == 0 { // more than one would mean the same
			continue
		}
		if a, err := netip.ParseAddr(e.Addresses[0]); err == nil {
			t.addr = a.Unmap()
			s.endpoints = append(s.endpoints, t)
		}
	}
	return s
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
