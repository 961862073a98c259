package controlplane

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	pb "conduit.io/conduit/api/discoveryv1"
)

// port is an answer about a port of a shared address.
func port(a *pb.Answer, port, of uint32, node, zone string) *pb.Answer {
	a.Address.Port, a.ByPort, a.Node, a.Zone = port, true, node, zone
	if a.Workload != "" {
		a.WorkloadPort = of
	} else {
		a.ServicePort = of
	}
	return a
}

// shared is an answer about an address whose ports belong to others.
func shared(a *pb.Answer) *pb.Answer { a.ByPort = true; return a }

func TestPortsOfNodes(t *testing.T) {
	hinted := func(id, addr, zone string) *pb.Endpoint {
		e := endpoint(id, addr, true)
		e.HintZones = []string{zone}
		return e
	}
	node, service, pod := pb.Answer_KIND_NODE, pb.Answer_KIND_SERVICE, pb.Answer_KIND_WORKLOAD
	m := web(hinted("a", "10.0.0.1", "z1"), hinted("b", "10.0.0.2", "z2"), hinted("c", "fd00::3", "z1"))
	m.Locality = &pb.Locality{Node: "n1", Zone: "z1"}
	m.Answers = append(m.Answers, shared(answer("192.0.2.1", node, "")), shared(answer("192.0.2.2", node, "")), shared(answer("198.51.100.1", service, "shop/web")),
		port(answer("192.0.2.1", service, "shop/web"), 30080, 80, "n1", "z1"), port(answer("2001:db8::1", service, "shop/web"), 30080, 80, "n1", "z1"),
		port(answer("192.0.2.2", service, "shop/web"), 30080, 80, "n2", "z2"),
		port(answer("192.0.2.2", node, ""), 22, 0, "n2", "z2"),
		port(answer("198.51.100.1", service, "shop/web"), 81, 0, "", ""), port(answer("198.51.100.1", service, "shop/web"), 22, 0, "", ""),
		port(answer("192.0.2.2", pod, "u"), 8000, 9000, "n2", "z2"), port(answer("2001:db8::2", pod, "u"), 8000, 9000, "n2", "z2"))
	m.Services[0].ExternalIps = [][]byte{ip("198.51.100.1")}
	m.Workloads = []*pb.Workload{{Uid: "u", Namespace: "shop", Name: "bound-x", Owner: "daemonset/bound", Node: "n2", Ips: [][]byte{ip("fd00::9"), ip("10.0.0.9")}}}
	s := newState("n1")
	s.apply(m, all)
	v := s.view()
	var got []string
	for i := range v.Services {
		got = append(got, v.Services[i].Name+" "+texts(v.Services[i:i+1]))
	}
	slices.Sort(got)
	want := []string{
		"bound [] 9000: 10.0.0.9:9000 at [192.0.2.2:8000]",
		"bound [] 9000: [fd00::9]:9000 at [[2001:db8::2]:8000]",
		"web [10.96.0.7] 80: 10.0.0.1:8080 [fd00::3]:8080 at [192.0.2.1:30080 [2001:db8::1]:30080] 81: at [198.51.100.1:81]",
		"web [] 80: 10.0.0.2:8080 [fd00::3]:8080 at [192.0.2.2:30080]", // as n2 would choose
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("services\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := fmt.Sprint(v.ByPort, v.Nobody); got != "[192.0.2.1 192.0.2.2 198.51.100.1] [192.0.2.2:22 198.51.100.1:22]" {
		t.Errorf("by port, and nobody's: %s", got)
	}
}

// Source ranges are for load balancers' addresses alone.
func TestSourceRanges(t *testing.T) {
	m := web(endpoint("a", "10.0.0.1", true))
	v := m.Services[0]
	v.ExternalIps, v.LoadBalancerIps, v.SourceRanges = [][]byte{ip("198.51.100.1"), ip("198.51.100.2")}, [][]byte{ip("198.51.100.2")}, []string{"10.0.0.0/8"}
	m.Answers = append(m.Answers, answer("198.51.100.1", pb.Answer_KIND_SERVICE, "shop/web"), answer("198.51.100.2", pb.Answer_KIND_SERVICE, "shop/web"))
	s := newState("n1")
	s.apply(m, all)
	got := ""
	for _, v := range s.view().Services {
		got += fmt.Sprint(v.Addrs, v.Sources)
	}
	if want := "[10.96.0.7 198.51.100.1] [][198.51.100.2] [10.0.0.0/8]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
