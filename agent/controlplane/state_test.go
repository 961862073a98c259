package controlplane

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"conduit.io/conduit/agent/discovery"
	pb "conduit.io/conduit/api/discoveryv1"
)

func ip(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

func answer(a string, kind pb.Answer_Kind, key string) *pb.Answer {
	out := &pb.Answer{Address: &pb.Address{Ip: ip(a)}, Kind: kind}
	if kind == pb.Answer_KIND_SERVICE {
		out.Service = key
	} else {
		out.Workload = key
	}
	return out
}

func endpoint(id, addr string, ready bool) *pb.Endpoint {
	return &pb.Endpoint{Id: id, Ip: ip(addr), Ready: ready, Serving: true, Workload: "uid-" + id, Node: "n2",
		Ports: []*pb.EndpointPort{{Name: "http", Port: 8080}}}
}

func web(endpoints ...*pb.Endpoint) *pb.WatchResponse {
	return &pb.WatchResponse{
		Position: &pb.Position{Epoch: "e", Version: 1},
		Answers:  []*pb.Answer{answer("10.96.0.7", pb.Answer_KIND_SERVICE, "shop/web")},
		Services: []*pb.Service{{Key: "shop/web", ClusterIps: [][]byte{ip("10.96.0.7")},
			Ports: []*pb.ServicePort{{Port: 80, Name: "http", Protocol: pb.Protocol_PROTOCOL_HTTP1}, {Port: 81, Name: "other"}}}},
		Endpoints: []*pb.EndpointsUpdate{{Service: "shop/web", Replace: true, Endpoints: endpoints}},
	}
}

func all(netip.AddrPort) bool { return true }

// used are the addresses behind port 80 of the only service.
func used(t *testing.T, v *discovery.View) string {
	t.Helper()
	if len(v.Services) != 1 || len(v.Services[0].Ports) != 2 || len(v.Services[0].Ports[1].Endpoints) != 0 {
		t.Fatalf("services %+v", v.Services)
	}
	var out []string
	for _, e := range v.Services[0].Ports[0].Endpoints {
		out = append(out, e.Addr.String())
	}
	return strings.Join(out, " ")
}

func TestChanges(t *testing.T) {
	s := newState("n1")
	s.apply(web(endpoint("a", "10.0.0.1", true), endpoint("b", "10.0.0.2", true)), all)
	s.apply(&pb.WatchResponse{Position: &pb.Position{Epoch: "e", Version: 2}, Endpoints: []*pb.EndpointsUpdate{
		{Service: "shop/web", Endpoints: []*pb.Endpoint{endpoint("c", "10.0.0.3", true)}, Removed: []string{"a"}},
		{Service: "none/such", Endpoints: []*pb.Endpoint{endpoint("x", "10.0.0.9", true)}}, // which nothing describes
	}}, all)
	if got := used(t, s.view()); got != "10.0.0.2:8080 10.0.0.3:8080" {
		t.Errorf("after a change: %q", got)
	}
	// A new description keeps the endpoints.
	m := web()
	m.Endpoints, m.Services[0].Ports = nil, append([]*pb.ServicePort{}, web().Services[0].Ports...)
	m.Services[0].AffinitySeconds = 60
	s.apply(m, all)
	if v := s.view(); used(t, v) != "10.0.0.2:8080 10.0.0.3:8080" || v.Services[0].Affinity != 60 {
		t.Errorf("after a new description: %+v", v.Services)
	}
	s.apply(&pb.WatchResponse{Position: &pb.Position{Epoch: "f", Version: 1}, Reset_: true,
		Answers: []*pb.Answer{answer("10.96.0.7", pb.Answer_KIND_NOBODY, "")}}, all)
	if v := s.view(); len(v.Services) != 0 || len(v.Nobody) != 1 || s.epoch != "f" {
		t.Errorf("after a reset: %+v", v)
	}
}

func TestAnswers(t *testing.T) {
	s := newState("n1")
	w := answer("10.0.1.5", pb.Answer_KIND_WORKLOAD, "u")
	w.Declared = []*pb.DeclaredPort{{Port: 9090, Protocol: pb.Protocol_PROTOCOL_HTTP2, Service: "db/x"}}
	s.apply(&pb.WatchResponse{
		Position: &pb.Position{Epoch: "e", Version: 3},
		Answers: []*pb.Answer{w, answer("10.0.0.250", pb.Answer_KIND_NODE, ""), answer("192.0.2.1", pb.Answer_KIND_NOBODY, ""),
			answer("192.0.2.2", pb.Answer_KIND_REFUSED, ""), answer("::ffff:192.0.2.3", pb.Answer_KIND_NOBODY, "")},
		Workloads: []*pb.Workload{{Uid: "u", Namespace: "db", Name: "x-0", Ips: [][]byte{ip("10.0.1.5"), {1, 2}}, Meshed: true}},
	}, all)
	v := s.view()
	if fmt.Sprint(v.Nobody) != "[10.0.0.250:0 192.0.2.1:0 192.0.2.3:0]" {
		t.Errorf("nobody: %v", v.Nobody)
	}
	if len(v.Services) != 1 || len(v.Services[0].Addrs) != 0 || v.Services[0].Ports[0].Endpoints[0].Addr.String() != "10.0.1.5:9090" {
		t.Errorf("declared: %+v", v.Services)
	}
	if len(v.Workloads) != 1 || len(v.Workloads[0].Addrs) != 1 {
		t.Errorf("workloads: %+v", v.Workloads)
	}
	// What is wanted no more is dropped, with what only it led to.
	s.forget(func(a netip.AddrPort) bool { return a == netip.MustParseAddrPort("192.0.2.1:0") })
	if v := s.view(); len(v.Nobody) != 1 || len(v.Services)+len(v.Workloads) != 0 {
		t.Errorf("after forgetting: %+v", v)
	}
}

// A pod is dialled by mTLS when its kernel was seen to take it, or when it takes nothing else.
func TestReachable(t *testing.T) {
	for _, tc := range []struct {
		w    *pb.Workload
		want bool
	}{
		{&pb.Workload{}, false},
		{&pb.Workload{Meshed: true}, false},
		{&pb.Workload{Meshed: true, Enrolment: pb.Workload_ENROLMENT_NOT_ENROLLED}, false},
		{&pb.Workload{Meshed: true, Enrolment: pb.Workload_ENROLMENT_ENROLLED}, true},
		{&pb.Workload{Enrolment: pb.Workload_ENROLMENT_ENROLLED}, false},
		{&pb.Workload{Meshed: true, MtlsMode: pb.Workload_MTLS_MODE_STRICT}, true},
	} {
		if got := reachable(tc.w); got != tc.want {
			t.Errorf("%v: %v", tc.w, got)
		}
	}
}
