package controlplane

import (
	"fmt"
	"testing"

	pb "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/mesh"
)

// Which endpoints are used is what kube-proxy (CategorizeEndpoints) would use on this node, n1 in zone z1.
func TestEndpointsThatAreUsed(t *testing.T) {
	zones := func(e *pb.Endpoint, zones ...string) *pb.Endpoint { e.HintZones = zones; return e }
	nodes := func(e *pb.Endpoint, nodes ...string) *pb.Endpoint { e.HintNodes = nodes; return e }
	here := func(e *pb.Endpoint) *pb.Endpoint { e.Node = "n1"; return e }
	going := func(e *pb.Endpoint) *pb.Endpoint { e.Terminating = true; return e }
	ended := func(e *pb.Endpoint) *pb.Endpoint { e.Terminating, e.Serving = true, false; return e }
	const local = pb.Service_TRAFFIC_POLICY_LOCAL
	for _, tc := range []struct {
		name   string
		policy pb.Service_TrafficPolicy
		eps    []*pb.Endpoint
		want   string
	}{
		{"ready ones", 0, []*pb.Endpoint{endpoint("b", "10.0.0.2", true), endpoint("a", "10.0.0.1", true), endpoint("c", "10.0.0.3", false)}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"ready ones, not those that go away", 0, []*pb.Endpoint{endpoint("a", "10.0.0.1", true), going(endpoint("c", "10.0.0.3", false))}, "10.0.0.1:8080"},
		{"all go away", 0, []*pb.Endpoint{going(endpoint("a", "10.0.0.1", false)), ended(endpoint("b", "10.0.0.2", false)), going(endpoint("c", "10.0.0.3", false))}, "10.0.0.1:8080 10.0.0.3:8080"},
		{"hints of those that go away", 0, []*pb.Endpoint{zones(going(endpoint("a", "10.0.0.1", false)), "z2"), zones(going(endpoint("b", "10.0.0.2", false)), "z1")}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"none is ready, and none goes away", 0, []*pb.Endpoint{endpoint("a", "10.0.0.1", false)}, ""},
		{"of this node", local, []*pb.Endpoint{endpoint("a", "10.0.0.1", true), here(endpoint("b", "10.0.0.2", true))}, "10.0.0.2:8080"},
		{"of this node, whatever hints say", local, []*pb.Endpoint{zones(here(endpoint("a", "10.0.0.1", true)), "z1"), zones(here(endpoint("b", "10.0.0.2", true)), "z2")}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"none on this node", local, []*pb.Endpoint{endpoint("a", "10.0.0.1", true)}, ""},
		{"all on this node go away", local, []*pb.Endpoint{endpoint("a", "10.0.0.1", true), here(going(endpoint("b", "10.0.0.2", false)))}, "10.0.0.2:8080"},
		{"zone", 0, []*pb.Endpoint{zones(endpoint("a", "10.0.0.1", true), "z1"), zones(endpoint("b", "10.0.0.2", true), "z2")}, "10.0.0.1:8080"},
		{"other zones", 0, []*pb.Endpoint{zones(endpoint("a", "10.0.0.1", true), "z3"), zones(endpoint("b", "10.0.0.2", true), "z2")}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"one without a hint", 0, []*pb.Endpoint{zones(endpoint("a", "10.0.0.1", true), "z1"), endpoint("b", "10.0.0.2", true)}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"one that is not ready without a hint", 0, []*pb.Endpoint{zones(endpoint("a", "10.0.0.1", true), "z1"), zones(endpoint("b", "10.0.0.2", true), "z2"), endpoint("c", "10.0.0.3", false)}, "10.0.0.1:8080"},
		{"node before zone", 0, []*pb.Endpoint{nodes(zones(endpoint("a", "10.0.0.1", true), "z1"), "n1"), nodes(zones(endpoint("b", "10.0.0.2", true), "z1"), "n2")}, "10.0.0.1:8080"},
		{"zone where no node fits", 0, []*pb.Endpoint{nodes(zones(endpoint("a", "10.0.0.1", true), "z1"), "n3"), nodes(zones(endpoint("b", "10.0.0.2", true), "z2"), "n2")}, "10.0.0.1:8080"},
		{"hints of the other family", 0, []*pb.Endpoint{zones(endpoint("a", "10.0.0.1", true), "z1"), zones(endpoint("b", "10.0.0.2", true), "z2"), endpoint("c", "fd00::3", true)}, "10.0.0.1:8080 [fd00::3]:8080"},
		{"the other family goes away", 0, []*pb.Endpoint{endpoint("a", "10.0.0.1", true), going(endpoint("c", "fd00::3", false))}, "10.0.0.1:8080 [fd00::3]:8080"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newState("n1")
			m := web(tc.eps...)
			m.Services[0].InternalPolicy, m.Locality = tc.policy, &pb.Locality{Node: "n1", Zone: "z1"}
			s.apply(m, all)
			if got := used(t, s.view()); got != tc.want {
				t.Errorf("%q instead of %q", got, tc.want)
			}
		})
	}
}

// Endpoints of another port say nothing of this one's.
func TestEndpointsOfEachPort(t *testing.T) {
	other := func(e *pb.Endpoint) *pb.Endpoint {
		e.Ports = []*pb.EndpointPort{{Name: "other", Port: 9090}}
		return e
	}
	going := endpoint("a", "10.0.0.1", false)
	going.Terminating = true
	hinted := other(endpoint("c", "10.0.0.3", true))
	hinted.HintZones = []string{"z1"}
	s := newState("n1")
	m := web(going, other(endpoint("b", "10.0.0.2", true)), hinted)
	m.Locality = &pb.Locality{Zone: "z1"}
	s.apply(m, all)
	if got, want := texts(s.view().Services), "[10.96.0.7] 80: 10.0.0.1:8080 81: 10.0.0.2:9090 10.0.0.3:9090"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// texts shows services with the endpoints of each port.
func texts(services []mesh.Service) string {
	text := ""
	for _, v := range services {
		text += fmt.Sprint(v.Addrs)
		for _, p := range v.Ports {
			text += fmt.Sprintf(" %d:", p.Port)
			for _, e := range p.Endpoints {
				text += " " + e.Addr.String()
			}
			if len(p.At) > 0 {
				text += fmt.Sprint(" at ", p.At)
			}
		}
	}
	return text
}

// internalTrafficPolicy is for cluster IPs; pods that dial a Service's other addresses are not restricted by either policy.
func TestPoliciesOfAddresses(t *testing.T) {
	const local, cluster = pb.Service_TRAFFIC_POLICY_LOCAL, pb.Service_TRAFFIC_POLICY_CLUSTER
	for _, tc := range []struct {
		internal, external pb.Service_TrafficPolicy
		want               string
	}{
		{cluster, local, "[10.96.0.7 198.51.100.1] 80: 10.0.0.1:8080 10.0.0.2:8080"},
		{local, cluster, "[10.96.0.7] 80: 10.0.0.2:8080[198.51.100.1] 80: 10.0.0.1:8080 10.0.0.2:8080"},
		{local, local, "[10.96.0.7] 80: 10.0.0.2:8080[198.51.100.1] 80: 10.0.0.1:8080 10.0.0.2:8080"},
	} {
		here := endpoint("b", "10.0.0.2", true)
		here.Node = "n1"
		m := web(endpoint("a", "10.0.0.1", true), here)
		v := m.Services[0]
		v.InternalPolicy, v.ExternalPolicy, v.ExternalIps, v.Ports = tc.internal, tc.external, [][]byte{ip("198.51.100.1")}, v.Ports[:1]
		m.Answers = append(m.Answers, answer("198.51.100.1", pb.Answer_KIND_SERVICE, "shop/web"))
		s := newState("n1")
		s.apply(m, all)
		if got := texts(s.view().Services); got != tc.want {
			t.Errorf("internal %v, external %v: %s, want %s", tc.internal, tc.external, got, tc.want)
		}
	}
}

// A version may come in several responses, endpoints before what describes their service.
func TestEndpointsComeFirst(t *testing.T) {
	m := web(endpoint("a", "10.0.0.1", true))
	s := newState("n1")
	s.apply(&pb.WatchResponse{Position: m.Position, More: true, Endpoints: m.Endpoints}, all)
	if v := s.view(); len(v.Services) != 0 {
		t.Errorf("before its description: %+v", v.Services)
	}
	s.apply(&pb.WatchResponse{Position: m.Position, Services: m.Services, Answers: m.Answers}, all)
	if got := used(t, s.view()); got != "10.0.0.1:8080" {
		t.Errorf("afterwards: %q", got)
	}
}
