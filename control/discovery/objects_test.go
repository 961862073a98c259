package discovery

import (
	"net/netip"
	"strings"
	"testing"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/v1alpha1"

	corev1 "k8s.io/api/core/v1"
	discoveryk8s "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// put takes Kubernetes objects into x.
func put(t testing.TB, x *Index, objects ...any) {
	t.Helper()
	for _, o := range objects {
		r, err := Strip(o)
		if err != nil {
			t.Fatal(err)
		}
		x.Put(r)
	}
}

func parseYAML[T any](t testing.TB, text string) *T {
	t.Helper()
	o := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
		t.Fatal(err)
	}
	return o
}

func makePod(ns, name, uid, node string, ips ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(uid)},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "web"}}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

func makeNode(name, zone, ip string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}}}
}

func makeNamespace(name, label string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{kube.LabelMesh: label}}}
}

func makePolicy(mode string) *v1alpha1.MeshPolicy {
	return &v1alpha1.MeshPolicy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.MeshPolicyName},
		Spec: v1alpha1.MeshPolicySpec{MTLS: v1alpha1.MTLS{Mode: mode}}}
}

func makeService(ns, name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}}
	if ip != "None" {
		s.Spec.ClusterIPs = []string{ip}
	}
	return s
}

// backend is one endpoint of makeSlice.
type backend struct {
	ip, pod, uid string // pod empty: no targetRef
	unready      bool
}

func makeSlice(ns, name, service, port string, number int32, backends ...backend) *discoveryk8s.EndpointSlice {
	s := &discoveryk8s.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name,
		Labels: map[string]string{discoveryk8s.LabelServiceName: service}}, AddressType: discoveryk8s.AddressTypeIPv4,
		Ports: []discoveryk8s.EndpointPort{{Name: &port, Port: &number}}}
	for _, b := range backends {
		ready := !b.unready
		e := discoveryk8s.Endpoint{Addresses: []string{b.ip}, Conditions: discoveryk8s.EndpointConditions{Ready: &ready}}
		if b.pod != "" {
			e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: b.pod, UID: types.UID(b.uid)}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func ip(s string) *discoveryv1.Address { return ipPort(s, 0) }

func ipPort(s string, port uint32) *discoveryv1.Address {
	return &discoveryv1.Address{Ip: netip.MustParseAddr(s).AsSlice(), Port: port}
}

// mirror is a client: it keeps what it is sent, by the rules of the protocol.
type mirror struct {
	position  *discoveryv1.Position
	locality  *discoveryv1.Locality
	answers   map[string]*discoveryv1.Answer
	services  map[string]*discoveryv1.Service
	endpoints map[string]map[string]*discoveryv1.Endpoint // by service and id
	workloads map[string]*discoveryv1.Workload
	resources int // how many were sent, in all
}

func newMirror() *mirror {
	return &mirror{answers: map[string]*discoveryv1.Answer{}, services: map[string]*discoveryv1.Service{},
		endpoints: map[string]map[string]*discoveryv1.Endpoint{}, workloads: map[string]*discoveryv1.Workload{}}
}

func addressKey(a *discoveryv1.Address) string {
	i, _ := netip.AddrFromSlice(a.Ip)
	return netip.AddrPortFrom(i.Unmap(), uint16(a.Port)).String()
}

// apply takes in a version; what it refers to must be there when its last response has come.
func (m *mirror) apply(t testing.TB, responses ...*discoveryv1.WatchResponse) {
	t.Helper()
	for i, r := range responses {
		if r.Reset_ {
			*m = *newMirror()
		}
		if r.Locality != nil {
			m.locality = r.Locality
		}
		m.resources += len(r.Answers) + len(r.Services) + len(r.Workloads)
		for _, w := range r.Workloads {
			m.workloads[w.Uid] = w
		}
		for _, s := range r.Services {
			m.services[s.Key] = s
		}
		for _, u := range r.Endpoints {
			if u.Replace || m.endpoints[u.Service] == nil {
				m.endpoints[u.Service] = map[string]*discoveryv1.Endpoint{}
			}
			for _, e := range u.Endpoints {
				m.endpoints[u.Service][e.Id] = e
			}
			for _, id := range u.Removed {
				delete(m.endpoints[u.Service], id)
			}
			m.resources += len(u.Endpoints) + len(u.Removed)
		}
		for _, a := range r.Answers {
			m.answers[addressKey(a.Address)] = a
		}
		if m.position = r.Position; r.More != (i < len(responses)-1) {
			t.Fatalf("response %d of %d says more: %v", i, len(responses), r.More)
		}
	}
	m.sweep(t)
}

// sweep drops what nothing refers to, and fails if something refers to what is not there.
func (m *mirror) sweep(t testing.TB) {
	t.Helper()
	services, workloads := map[string]bool{}, map[string]bool{}
	for k, a := range m.answers {
		if a.Service != "" {
			services[a.Service] = true
			if m.services[a.Service] == nil {
				t.Fatalf("the answer for %s names the service %s, which was not sent", k, a.Service)
			}
		}
		if a.Workload != "" {
			workloads[a.Workload] = true
		}
	}
	for key := range m.services {
		if !services[key] {
			delete(m.services, key)
		}
	}
	for key, eps := range m.endpoints {
		if !services[key] {
			delete(m.endpoints, key)
			continue
		}
		for _, e := range eps {
			if e.Workload != "" {
				workloads[e.Workload] = true
			}
		}
	}
	for uid := range workloads {
		if m.workloads[uid] == nil {
			t.Fatalf("the workload %s is referred to and was not sent", uid)
		}
	}
	for uid := range m.workloads {
		if !workloads[uid] {
			delete(m.workloads, uid)
		}
	}
}

// text is what the mirror holds, for comparison.
func (m *mirror) text() map[string]string {
	out := map[string]string{}
	for k, a := range m.answers {
		out["answer "+k] = canonical(a)
	}
	for k, s := range m.services {
		out["service "+k] = canonical(s)
	}
	for k, eps := range m.endpoints {
		for id, e := range eps {
			out["endpoint "+k+" "+id] = canonical(e)
		}
	}
	for k, w := range m.workloads {
		out["workload "+k] = canonical(w)
	}
	return out
}

// canonical is m in one spelling: the package writes spaces at random, so that nobody relies on them.
func canonical(m interface{ String() string }) string {
	return strings.Join(strings.Fields(m.String()), " ")
}
