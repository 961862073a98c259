package discovery

import (
	"fmt"
	"testing"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"

	corev1 "k8s.io/api/core/v1"
)

func answerText(a *discoveryv1.Answer) string {
	text := a.Kind.String()[len("KIND_"):]
	if a.ByPort {
		text += " by port"
	}
	for _, of := range []string{a.Service, a.Workload, a.Node, a.Zone} {
		if of != "" {
			text += " " + of
		}
	}
	if p := a.ServicePort + a.WorkloadPort; p != 0 {
		text += fmt.Sprint(" ", p)
	}
	return text
}

// Whose a port of a node's address is, and of an address that Services share.
func TestPortsOfSharedAddresses(t *testing.T) {
	x := New()
	n1 := makeNode("n1", "east", "192.0.2.1")
	n1.Status.Addresses = append(n1.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: "2001:db8::1"},
		corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "203.0.113.1"})
	bound := makePod("shop", "bound", "u-b", "n1", "10.1.0.1", "fd00::1")
	bound.Spec.InitContainers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 9001, HostPort: 8001}}}}
	bound.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 9000, HostPort: 8000, HostIP: "0.0.0.0"}, {ContainerPort: 53, HostPort: 53, Protocol: corev1.ProtocolUDP},
		{ContainerPort: 9002, HostPort: 8002, HostIP: "2001:db8::1"}, {ContainerPort: 9003}}}}
	host := makePod("shop", "host", "u-h", "n1", "192.0.2.1")
	host.Spec.HostNetwork = true
	host.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 7000, HostPort: 7000}}}}
	one := makeService("shop", "one", "10.96.0.1", corev1.ServicePort{Name: "a", Port: 80, NodePort: 30080}, corev1.ServicePort{Name: "b", Port: 81, NodePort: 30081})
	two := makeService("shop", "two", "10.96.0.2", corev1.ServicePort{Port: 443})
	one.Spec.ExternalIPs, two.Spec.ExternalIPs = []string{"198.51.100.1"}, []string{"198.51.100.1", "192.0.2.1"}
	put(t, x, n1, bound, host, one, two)
	for address, want := range map[string]string{
		"192.0.2.1":           "SERVICE by port shop/two",
		"192.0.2.1:443":       "SERVICE by port shop/two",
		"192.0.2.1:30080":     "SERVICE by port shop/one n1 east 80",
		"192.0.2.1:30081":     "SERVICE by port shop/one n1 east 81",
		"[2001:db8::1]:30080": "NODE by port n1 east", // a Service of the other family
		"192.0.2.1:8000":      "WORKLOAD by port u-b n1 east 9000",
		"192.0.2.1:8001":      "WORKLOAD by port u-b n1 east 9001",
		"192.0.2.1:8002":      "NODE by port n1 east", // at the other address
		"[2001:db8::1]:8002":  "WORKLOAD by port u-b n1 east 9002",
		"192.0.2.1:53":        "NODE by port n1 east",
		"192.0.2.1:7000":      "NODE by port n1 east", // the host's own
		"192.0.2.1:22":        "NODE by port n1 east",
		"[2001:db8::1]:0":     "NODE by port",
		"203.0.113.1:30080":   "NODE", // it may not be the node's own: what is dialled leaves the cluster
		"198.51.100.1:80":     "SERVICE by port shop/one",
		"198.51.100.1:443":    "SERVICE by port shop/two",
		"198.51.100.1:22":     "SERVICE by port shop/one",
		"10.96.0.1:30080":     "SERVICE shop/one",
		"10.1.0.1:8000":       "WORKLOAD u-b",
		"[2001:db8::1]:443":   "NODE by port n1 east",
		"198.51.100.1":        "SERVICE by port shop/one",
	} {
		m := ask(t, x, address)
		for _, a := range m.answers {
			if got := answerText(a); got != want {
				t.Errorf("%s: %s, want %s", address, got, want)
			}
		}
	}
	ended := bound.DeepCopy()
	ended.Status.Phase = corev1.PodSucceeded
	put(t, x, ended)
	if got := answerText(ask(t, x, "192.0.2.1:8000").answers["192.0.2.1:8000"]); got != "NODE by port n1 east" {
		t.Errorf("the host port of a pod that has ended: %s", got)
	}
	if put(t, x, bound); len(x.hostPorts) != 3 {
		t.Errorf("%d host ports are claimed, want 3", len(x.hostPorts))
	}
	if x.Remove(Pods, Name{"shop", "bound"}); len(x.hostPorts) != 0 {
		t.Errorf("%d host ports are left", len(x.hostPorts))
	}
}

// What the cluster has given to somebody, a cluster IP, a pod's address, a NodePort or a host port, is not led to the Service of
// somebody else who says that it is his.
func TestAddressesAreNotTaken(t *testing.T) {
	var x *Index
	web := makePod("shop", "web", "u-w", "n1", "10.1.0.1")
	web.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 9000, HostPort: 8000}}}}
	shop := makeService("shop", "web", "10.96.0.1", corev1.ServicePort{Port: 80, NodePort: 30080})
	trap := makeService("a", "trap", "10.96.0.2", corev1.ServicePort{Name: "a", Port: 80}, corev1.ServicePort{Name: "b", Port: 30080},
		corev1.ServicePort{Name: "c", Port: 8000}, corev1.ServicePort{Name: "d", Port: 443})
	trap.Spec.ExternalIPs = []string{"10.96.0.1", "10.1.0.1", "192.0.2.1", "198.51.100.1"}
	want := map[string]string{
		"10.96.0.1":       "SERVICE shop/web",
		"10.96.0.1:80":    "SERVICE shop/web",
		"10.96.0.1:443":   "SERVICE shop/web",
		"10.1.0.1":        "WORKLOAD u-w",
		"10.1.0.1:80":     "WORKLOAD u-w",
		"192.0.2.1:30080": "SERVICE by port shop/web n1 east 80",
		"192.0.2.1:8000":  "WORKLOAD by port u-w n1 east 9000",
		"192.0.2.1:443":   "SERVICE by port a/trap", // nobody else's
		"198.51.100.1:80": "SERVICE a/trap",
	}
	// Whoever was there first.
	for _, order := range [][]any{{trap, makeNode("n1", "east", "192.0.2.1"), web, shop}, {makeNode("n1", "east", "192.0.2.1"), web, shop, trap}} {
		x = New()
		put(t, x, order...)
		for address, want := range want {
			for _, a := range ask(t, x, address).answers {
				if got := answerText(a); got != want {
					t.Errorf("%s: %s, want %s", address, got, want)
				}
			}
		}
	}
	// When what an address is given to goes, who watches is told of the next.
	x.Remove(Services, Name{"shop", "web"})
	if got := answerText(ask(t, x, "10.96.0.1:80").answers["10.96.0.1:80"]); got != "SERVICE a/trap" {
		t.Errorf("after its end: %s", got)
	}
}
