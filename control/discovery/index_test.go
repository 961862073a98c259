package discovery

import (
	"net/netip"
	"strings"
	"testing"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryk8s "k8s.io/api/discovery/v1"
)

// shop has one of everything.
func shop(t testing.TB) *Index {
	x := New()
	put(t, x, makeNamespace("shop", "enabled"), makeNode("n1", "east", "192.0.2.1"),
		makePod("shop", "web-0", "u-0", "n1", "10.1.0.1", "fd00::1"), makePod("shop", "web-1", "u-1", "n1", "10.1.0.2"))
	host := makePod("shop", "host", "u-h", "n1", "192.0.2.1")
	host.Spec.HostNetwork = true
	put(t, x, host, makeService("shop", "web", "10.96.0.1", corev1.ServicePort{Name: "http", Port: 80, NodePort: 30080}),
		makeSlice("shop", "web-a", "web", "http", 8080, backend{"10.1.0.1", "web-0", "u-0", false}, backend{"10.1.0.2", "web-1", "u-1", true}),
		makeService("shop", "host", "10.96.0.2", corev1.ServicePort{Port: 443}),
		makeSlice("shop", "host-a", "host", "", 6443, backend{"192.0.2.1", "host", "u-h", false}))
	headless := makeService("shop", "db", "None", corev1.ServicePort{Name: "db", Port: 5432, AppProtocol: ptr("tcp")})
	set := makeSlice("shop", "db-a", "db", "db", 5432, backend{"10.1.0.2", "web-1", "u-1", false})
	set.Endpoints[0].Hostname = ptr("web-1")
	put(t, x, headless, set, makeService("shop", "manual", "10.96.0.3", corev1.ServicePort{Name: "x", Port: 1}),
		makeSlice("shop", "manual-1", "manual", "x", 9, backend{ip: "203.0.113.9"}, backend{ip: "10.1.0.2"}))
	alias := makeService("shop", "outside", "")
	alias.Spec.Type, alias.Spec.ExternalName, alias.Spec.ClusterIPs = corev1.ServiceTypeExternalName, "example.com", nil
	put(t, x, alias)
	return x
}

func ptr[T any](v T) *T { return &v }

// ask is what x has for an address, in the form of a mirror.
func ask(t testing.TB, x *Index, addrs ...string) *mirror {
	t.Helper()
	var list []netip.AddrPort
	for _, a := range addrs {
		p, err := parseText(a)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	r := x.Lookup(list)
	m := newMirror()
	m.apply(t, &discoveryv1.WatchResponse{Position: r.Position, Answers: r.Answers, Services: r.Services, Endpoints: r.Endpoints, Workloads: r.Workloads})
	return m
}

func TestAnswers(t *testing.T) {
	x := shop(t)
	for _, tt := range []struct {
		address string
		kind    discoveryv1.Answer_Kind
		leads   string // service or workload
		port    uint32
	}{
		{"10.96.0.1", discoveryv1.Answer_KIND_SERVICE, "shop/web", 0},
		{"10.96.0.1:80", discoveryv1.Answer_KIND_SERVICE, "shop/web", 0},
		{"10.1.0.1", discoveryv1.Answer_KIND_WORKLOAD, "u-0", 0},
		{"[fd00::1]:80", discoveryv1.Answer_KIND_WORKLOAD, "u-0", 0},
		{"::ffff:10.1.0.1", discoveryv1.Answer_KIND_WORKLOAD, "u-0", 0},
		{"192.0.2.1", discoveryv1.Answer_KIND_NODE, "", 0},
		{"192.0.2.1:30080", discoveryv1.Answer_KIND_SERVICE, "shop/web", 80},
		{"192.0.2.1:22", discoveryv1.Answer_KIND_NODE, "", 0},
		{"203.0.113.9", discoveryv1.Answer_KIND_NOBODY, "", 0},
		{"198.51.100.1", discoveryv1.Answer_KIND_NOBODY, "", 0},
	} {
		m := ask(t, x, tt.address)
		for _, a := range m.answers {
			if a.Kind != tt.kind || a.Service+a.Workload != tt.leads || a.ServicePort != tt.port {
				t.Errorf("%s: got %v", tt.address, a)
			}
		}
	}
}

// endpoints are those of a service, as "address:port workload state hostname".
func endpointTexts(m *mirror, service string) map[string]bool {
	out := map[string]bool{}
	for _, e := range m.endpoints[service] {
		a, _ := netip.AddrFromSlice(e.Ip)
		text := a.String()
		for _, p := range e.Ports {
			text += " " + p.Name + "=" + netip.AddrPortFrom(a, uint16(p.Port)).String()
		}
		if e.Workload != "" {
			text += " " + e.Workload
		}
		if !e.Ready {
			text += " unready"
		}
		if e.Hostname != "" {
			text += " " + e.Hostname
		}
		out[text] = true
	}
	return out
}

func TestEndpoints(t *testing.T) {
	x := shop(t)
	for _, tt := range []struct {
		address, service string
		want             []string
	}{
		{"10.96.0.1", "shop/web", []string{"10.1.0.1 http=10.1.0.1:8080 u-0", "10.1.0.2 http=10.1.0.2:8080 u-1 unready"}},
		{"10.96.0.2", "shop/host", []string{"192.0.2.1 =192.0.2.1:6443"}},                                  // the host's network: nobody's identity
		{"10.96.0.3", "shop/manual", []string{"203.0.113.9 x=203.0.113.9:9", "10.1.0.2 x=10.1.0.2:9 u-1"}}, // no selector: by address
	} {
		want := map[string]bool{}
		for _, w := range tt.want {
			want[w] = true
		}
		if d := cmp.Diff(want, endpointTexts(ask(t, x, tt.address), tt.service)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.service, d)
		}
	}
	a := ask(t, x, "10.1.0.2").answers["10.1.0.2:0"]
	var declared []string
	for _, d := range a.Declared {
		declared = append(declared, strings.Join([]string{d.Service, d.Protocol.String()}, " "))
	}
	want := []string{"shop/manual PROTOCOL_UNSPECIFIED", "shop/db PROTOCOL_OPAQUE", "shop/web PROTOCOL_HTTP1"}
	if d := cmp.Diff(want, declared); d != "" {
		t.Errorf("declared (-want +got):\n%s", d)
	}
}

func TestServiceFields(t *testing.T) {
	x := New()
	put(t, x, parseYAML[corev1.Service](t, `
metadata: {name: all, namespace: "n"}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00::96"]
  externalIPs: [198.51.100.1]
  ports: [{name: h2, port: 80, nodePort: 30001, appProtocol: kubernetes.io/h2c}, {name: dns, port: 53, protocol: UDP}, {name: grpc-x, port: 81}]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  trafficDistribution: PreferSameZone
  publishNotReadyAddresses: true
  loadBalancerSourceRanges: [10.9.0.0/8, nonsense]
status: {loadBalancer: {ingress: [{ip: 198.51.100.2}, {ip: 198.51.100.3, ipMode: Proxy}]}}
`), parseYAML[discoveryk8s.EndpointSlice](t, `
metadata: {name: all-1, namespace: "n", labels: {kubernetes.io/service-name: all}}
addressType: IPv6
ports: [{name: h2, port: 8080, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]
endpoints:
- addresses: ["2001:db8::1"]
  conditions: {ready: false, serving: true, terminating: true}
  nodeName: n7
  zone: west
  hints: {forZones: [{name: west}], forNodes: [{name: n7}]}
`))
	m := ask(t, x, "198.51.100.2")
	want := &discoveryv1.Service{Key: "n/all", Type: discoveryv1.Service_TYPE_LOAD_BALANCER,
		ClusterIps:  [][]byte{{10, 96, 0, 1}, netip.MustParseAddr("fd00::96").AsSlice()},
		ExternalIps: [][]byte{{198, 51, 100, 1}, {198, 51, 100, 2}},
		Ports: []*discoveryv1.ServicePort{{Port: 80, Name: "h2", NodePort: 30001, Protocol: discoveryv1.Protocol_PROTOCOL_HTTP2},
			{Port: 81, Name: "grpc-x", Protocol: discoveryv1.Protocol_PROTOCOL_HTTP2}},
		AffinitySeconds: 60, InternalPolicy: discoveryv1.Service_TRAFFIC_POLICY_LOCAL, ExternalPolicy: discoveryv1.Service_TRAFFIC_POLICY_LOCAL,
		PublishNotReady: true, TrafficDistribution: "PreferSameZone", LoadBalancerIps: [][]byte{{198, 51, 100, 2}}, SourceRanges: []string{"10.0.0.0/8"}}
	if d := cmp.Diff(canonical(want), canonical(m.services["n/all"])); d != "" {
		t.Errorf("service (-want +got):\n%s", d)
	}
	wantEndpoint := &discoveryv1.Endpoint{Id: "2001:db8::1", Ip: netip.MustParseAddr("2001:db8::1").AsSlice(), Serving: true, Terminating: true,
		Node: "n7", Zone: "west", HintZones: []string{"west"}, HintNodes: []string{"n7"}, Ports: []*discoveryv1.EndpointPort{{Name: "h2", Port: 8080}}}
	if d := cmp.Diff(canonical(wantEndpoint), canonical(m.endpoints["n/all"]["2001:db8::1"])); d != "" {
		t.Errorf("endpoint (-want +got):\n%s", d)
	}
	if kind := ask(t, x, "198.51.100.3").answers["198.51.100.3:0"].Kind; kind != discoveryv1.Answer_KIND_NOBODY {
		t.Errorf("an address that a load balancer proxies is %v: packets to it do not reach the Service", kind)
	}
	services, _, _ := shop(t).ListServices("", "", 100)
	last := services[3]
	if last.Type != discoveryv1.Service_TYPE_EXTERNAL_NAME || last.ExternalName != "example.com" || len(last.ClusterIps) != 0 {
		t.Errorf("ExternalName is listed as %v", last)
	}
}

// TestUnknownPodIsWithheld: an endpoint whose pod has not been seen yet must not be taken for one without an identity.
func TestUnknownPodIsWithheld(t *testing.T) {
	x := New()
	put(t, x, makeService("n", "s", "10.96.0.1", corev1.ServicePort{Port: 80}), makeSlice("n", "s-1", "s", "", 80, backend{"10.1.0.1", "p", "u-1", false}))
	if eps := endpointTexts(ask(t, x, "10.96.0.1"), "n/s"); len(eps) != 0 {
		t.Errorf("before the pod: %v", eps)
	}
	put(t, x, makePod("n", "p", "u-0", "n1", "10.1.0.1")) // its predecessor
	if eps := endpointTexts(ask(t, x, "10.96.0.1"), "n/s"); len(eps) != 0 {
		t.Errorf("with the pod's predecessor: %v", eps)
	}
	put(t, x, makePod("n", "p", "u-1", "n1"))
	if eps := endpointTexts(ask(t, x, "10.96.0.1"), "n/s"); len(eps) != 0 {
		t.Errorf("before the pod's address: %v", eps)
	}
	put(t, x, makePod("n", "p", "u-1", "n1", "10.1.0.1"))
	if eps := endpointTexts(ask(t, x, "10.96.0.1"), "n/s"); !eps["10.1.0.1 =10.1.0.1:80 u-1"] {
		t.Errorf("with the pod: %v", eps)
	}
	x.Remove(Pods, Name{"n", "p"})
	if eps := endpointTexts(ask(t, x, "10.96.0.1"), "n/s"); len(eps) != 0 {
		t.Errorf("after the pod: %v", eps)
	}
}

// TestAddressChangesHands: while a finished pod still says an address, it is its successor's.
func TestAddressChangesHands(t *testing.T) {
	x := New()
	first, second := makePod("n", "a", "u-a", "n1", "10.1.0.1"), makePod("n", "b", "u-b", "n1", "10.1.0.1")
	put(t, x, first, second)
	if w := ask(t, x, "10.1.0.1").answers["10.1.0.1:0"].Workload; w != "u-b" {
		t.Errorf("of two, %q has it; want the later", w)
	}
	second.Status.Phase = corev1.PodSucceeded
	put(t, x, second)
	if w := ask(t, x, "10.1.0.1").answers["10.1.0.1:0"].Workload; w != "u-a" {
		t.Errorf("after the later has ended, %q has it", w)
	}
	if !x.Runs("n1", "n", "web") || x.Runs("n2", "n", "web") || x.Runs("n1", "n", "other") || x.Runs("n1", "m", "web") {
		t.Error("Runs is wrong")
	}
	x.Remove(Pods, Name{"n", "a"})
	if k := ask(t, x, "10.1.0.1").answers["10.1.0.1:0"].Kind; k != discoveryv1.Answer_KIND_NOBODY || x.Runs("n1", "n", "web") {
		t.Errorf("after both: %v, runs %v", k, x.Runs("n1", "n", "web"))
	}
}

func TestPages(t *testing.T) {
	x := shop(t)
	var got []string
	for after, last := "", false; !last; {
		var page []*discoveryv1.Service
		page, _, last = x.ListServices("shop", after, 2)
		for _, s := range page {
			got = append(got, s.Key)
		}
		after = got[len(got)-1]
	}
	if d := cmp.Diff([]string{"shop/db", "shop/host", "shop/manual", "shop/outside", "shop/web"}, got); d != "" {
		t.Errorf("services (-want +got):\n%s", d)
	}
	w, _, last := x.ListWorkloads("", "n1", "shop/web-0", 10)
	if len(w) != 1 || w[0].Name != "web-1" || !last {
		t.Errorf("workloads after the first: %v, last %v", w, last)
	}
	if w, _, _ := x.ListWorkloads("", "n2", "", 10); len(w) != 0 {
		t.Errorf("another node has %v", w)
	}
}
