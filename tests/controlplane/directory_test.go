// Package controlplane tests the agent's side of the controller's API against the controller's.
package controlplane

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"conduit.io/conduit/agent/controlplane"
	agentview "conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/control/access"
	"conduit.io/conduit/control/discovery"
	"conduit.io/conduit/tests/leak"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m)) }

// rig is a controller with an agent's directory that follows it.
type rig struct {
	t       *testing.T
	index   *discovery.Index
	server  *httptest.Server
	dir     *controlplane.Directory
	changes chan struct{}
	addr    string
}

func start(t *testing.T) *rig {
	r := &rig{t: t, index: discovery.New(), changes: make(chan struct{}, 1)}
	r.serve("127.0.0.1:0")
	r.dir = controlplane.New(controlplane.Config{URL: "https://" + r.addr, Client: r.client(), Node: "n1", Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.dir.Run(ctx, func() {
			select {
			case r.changes <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		r.server.CloseClientConnections()
		r.server.Close()
	})
	return r
}

// client trusts any certificate: how the two sides know each other is tested elsewhere.
func (r *rig) client() *http.Client {
	tr := r.server.Client().Transport.(*http.Transport).Clone()
	tr.TLSClientConfig.InsecureSkipVerify = true
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// serve serves the index at addr, to the agent of node n1.
func (r *rig) serve(addr string) {
	r.t.Helper()
	path, handler := discoveryv1connect.NewDiscoveryServiceHandler(discovery.NewServer(r.index, discovery.Config{}))
	mux := http.NewServeMux()
	mux.HandleFunc(path, func(w http.ResponseWriter, q *http.Request) {
		handler.ServeHTTP(w, q.WithContext(access.With(q.Context(), access.Caller{Node: "n1"})))
	})
	r.server = httptest.NewUnstartedServer(mux)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.server.Listener.Close()
	r.server.Listener, r.addr = l, l.Addr().String()
	r.server.EnableHTTP2 = true
	r.server.StartTLS()
}

func (r *rig) put(objects ...any) {
	r.t.Helper()
	for _, o := range objects {
		rec, err := discovery.Strip(o)
		if err != nil {
			r.t.Fatal(err)
		}
		r.index.Put(rec)
	}
}

func (r *rig) eventually(what string, ok func(v *agentview.View) bool) {
	r.t.Helper()
	deadline := time.After(30 * time.Second)
	for !ok(r.dir.View()) {
		select {
		case <-r.changes:
		case <-deadline:
			r.t.Fatalf("%s: %+v; %+v", what, r.dir.View(), r.dir.Status())
		}
	}
}

// endpoints is how many endpoints the first port of the Service with an address has; -1 without one.
func endpoints(v *agentview.View) int {
	for _, s := range v.Services {
		if len(s.Addrs) == 1 && len(s.Ports) == 1 {
			return len(s.Ports[0].Endpoints)
		}
	}
	return -1
}

func namespace() *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"conduit.io/mesh": "enabled"}}}
}

func pod(name, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: types.UID("uid-" + name), Annotations: map[string]string{"conduit.io/mtls-mode": "STRICT"}},
		Spec:       corev1.PodSpec{NodeName: "n2", ServiceAccountName: "web"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

func service() *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.7", ClusterIPs: []string{"10.96.0.7"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}
}

func slice(ips ...string) *discoveryv1.EndpointSlice {
	name, port, ready := "http", int32(8080), true
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-1", Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready}})
	}
	return s
}

var clusterIP, podIP = netip.MustParseAddrPort("10.96.0.7:0"), netip.MustParseAddrPort("10.1.0.5:0")

func TestDirectory(t *testing.T) {
	r := start(t)
	r.dir.Lookup(&node.Lookup{Add: []netip.AddrPort{clusterIP, podIP}})
	r.eventually("addresses of nobody", func(v *agentview.View) bool { return len(v.Nobody) == 2 })
	r.put(namespace(), pod("web-0", "10.1.0.5"), service(), slice("10.1.0.5"))
	r.eventually("a service and a pod", func(v *agentview.View) bool {
		return endpoints(v) == 1 && len(v.Nobody) == 0 && len(v.Workloads) == 1 && v.Workloads[0].Meshed && v.Workloads[0].ServiceAccount == "web"
	})
	r.put(slice("10.1.0.5", "10.1.0.6"))
	r.eventually("another endpoint", func(v *agentview.View) bool { return endpoints(v) == 2 })
	r.dir.Lookup(&node.Lookup{Drop: []netip.AddrPort{clusterIP, podIP}})
	r.eventually("nothing", func(v *agentview.View) bool { return len(v.Services)+len(v.Workloads)+len(v.Nobody) == 0 })
	r.dir.Local([]netip.Addr{podIP.Addr()})
	r.eventually("what is said of an own pod", func(v *agentview.View) bool { return len(v.Workloads) == 1 })
}

// A controller that goes away changes nothing; one that comes back tells what has changed; another one tells all.
func TestControllerComesAndGoes(t *testing.T) {
	r := start(t)
	r.put(namespace(), pod("web-0", "10.1.0.5"), service(), slice("10.1.0.5"))
	r.dir.Reset([]netip.AddrPort{clusterIP})
	r.eventually("a service", func(v *agentview.View) bool { return endpoints(v) == 1 })
	for _, index := range []*discovery.Index{r.index, discovery.New()} {
		r.server.CloseClientConnections()
		r.server.Close()
		if endpoints(r.dir.View()) < 1 {
			t.Fatalf("forgotten: %+v", r.dir.View())
		}
		other := index != r.index
		r.index = index
		r.put(slice("10.1.0.5", "10.1.0.6"))
		if other {
			r.put(namespace(), service(), slice("10.1.0.7", "10.1.0.8", "10.1.0.9"))
		}
		r.serve(r.addr)
		r.eventually("what has changed", func(v *agentview.View) bool {
			return !other && endpoints(v) == 2 || other && endpoints(v) == 3
		})
	}
}

// A Service with so many endpoints that they are told in several messages has all of them.
func TestManyEndpoints(t *testing.T) {
	const many = 10000 // some 500 KB
	r := start(t)
	var ips []string
	for i := range many {
		ips = append(ips, netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}).String())
	}
	r.put(service(), slice(ips...))
	r.dir.Lookup(&node.Lookup{Add: []netip.AddrPort{clusterIP}})
	r.eventually("all endpoints", func(v *agentview.View) bool { return endpoints(v) == many })
}

// Ports of a node's address are asked about by themselves: NodePorts and host ports come and go with Services and pods.
func TestNodePorts(t *testing.T) {
	r := start(t)
	node1 := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}}
	whole, nodePort, hostPort := netip.MustParseAddrPort("192.0.2.1:0"), netip.MustParseAddrPort("192.0.2.1:30080"), netip.MustParseAddrPort("192.0.2.1:8000")
	r.put(node1, namespace(), slice("10.1.0.5"))
	r.dir.Lookup(&node.Lookup{Add: []netip.AddrPort{whole}})
	r.eventually("an address with ports", func(v *agentview.View) bool { return len(v.ByPort) == 1 && len(v.Nobody) == 0 })
	r.dir.Lookup(&node.Lookup{Add: []netip.AddrPort{nodePort, hostPort}})
	r.eventually("ports of nobody", func(v *agentview.View) bool { return slices.Equal(v.Nobody, []netip.AddrPort{hostPort, nodePort}) })
	at := func(v *agentview.View, a netip.AddrPort) string {
		for _, s := range v.Services {
			for _, p := range s.Ports {
				if slices.Contains(p.At, a) && len(p.Endpoints) == 1 {
					return s.Name + " " + p.Endpoints[0].Addr.String() + " " + p.Endpoints[0].Workload
				}
			}
		}
		return ""
	}
	web := service()
	web.Spec.Type, web.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
	bound := pod("web-0", "10.1.0.5")
	bound.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{HostPort: 8000, ContainerPort: 8080}}}}
	bound.Spec.NodeName = "n1"
	r.put(web, bound)
	r.eventually("a NodePort and a host port", func(v *agentview.View) bool {
		return at(v, nodePort) == "web 10.1.0.5:8080 uid-web-0" && at(v, hostPort) == "web-0 10.1.0.5:8080 uid-web-0" && len(v.Nobody) == 0
	})
	web.Spec.Ports[0].NodePort = 30081
	bound.Spec.Containers = nil
	r.put(web.DeepCopy(), bound.DeepCopy())
	r.eventually("ports of nobody again", func(v *agentview.View) bool { return len(v.Nobody) == 2 && len(v.Services)+len(v.Workloads) == 0 })
}
