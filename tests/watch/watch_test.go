package main

import (
	"bufio"
	"context"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"
	"conduit.io/conduit/control/discovery"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	slicev1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// replica is the controller's discovery, for whoever has the token.
type replica struct {
	t      *testing.T
	x      *discovery.Index
	server *httptest.Server
	asked  atomic.Int32 // streams
}

func (r *replica) serve(addr string) {
	r.t.Helper()
	path, h := discoveryv1connect.NewDiscoveryServiceHandler(discovery.NewServer(r.x, discovery.Config{}))
	mux := http.NewServeMux()
	mux.HandleFunc(path, func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Authorization") != "Bearer viewer" {
			_ = connect.NewErrorWriter().Write(w, q, connect.NewError(connect.CodePermissionDenied, io.EOF))
			return
		}
		r.asked.Add(1)
		h.ServeHTTP(w, q)
	})
	r.server = httptest.NewUnstartedServer(mux)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.server.Listener.Close()
	r.server.Listener, r.server.EnableHTTP2 = l, true
	r.server.StartTLS()
}

func (r *replica) end() {
	r.server.CloseClientConnections()
	r.server.Close()
}

func (r *replica) put(objects ...any) {
	r.t.Helper()
	for _, o := range objects {
		record, err := discovery.Strip(o)
		if err != nil {
			r.t.Fatal(err)
		}
		r.x.Put(record)
	}
}

func pod(name, ip string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: types.UID(name), Annotations: map[string]string{"conduit.io/mtls-mode": "STRICT"}},
		Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}}
}

func endpoints(ips ...string) *slicev1.EndpointSlice {
	port := int32(8080)
	s := &slicev1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "shop", Labels: map[string]string{slicev1.LabelServiceName: "web"}},
		AddressType: slicev1.AddressTypeIPv4, Ports: []slicev1.EndpointPort{{Port: &port}}}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, slicev1.Endpoint{Addresses: []string{ip}})
	}
	return s
}

// TestWatch: the example does what docs/api.md and the interface's description say, through changes and the controller's absence.
func TestWatch(t *testing.T) {
	r := &replica{t: t, x: discovery.New()}
	r.serve("127.0.0.1:0")
	addr, dir := r.server.Listener.Addr().String(), t.TempDir()
	write := func(name string, data []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	o := options{server: "https://example.com:8085", connect: addr, // a name that the certificate has
		roots: write("roots", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw})), token: write("token", []byte("viewer\n"))}
	for _, a := range []string{"10.96.0.7:80", "10.1.0.5:8080"} {
		at := netip.MustParseAddrPort(a)
		o.addresses = append(o.addresses, &discoveryv1.Address{Ip: at.Addr().AsSlice(), Port: uint32(at.Port())})
	}
	said, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- watch(ctx, o, out, io.Discard); out.Close() }()
	lines := bufio.NewScanner(said)
	expect := func(want ...string) {
		t.Helper()
		for _, w := range want {
			if !lines.Scan() || lines.Text() != w {
				t.Fatalf("said %q, want %q", lines.Text(), w)
			}
		}
	}
	expect("10.96.0.7:80  nobody", "10.1.0.5:8080  nobody")
	r.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"conduit.io/mesh": "enabled"}}}, pod("web-0", "10.1.0.5"))
	expect("10.1.0.5:8080  pod shop/web-0 on node n1, mTLS reaches it: true")
	r.put(endpoints("10.1.0.5", "10.1.0.9"))
	r.put(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Port: 80}}}})
	expect("10.96.0.7:80  Service shop/web: 2 endpoints are ready, mTLS reaches 1")
	r.end()
	r.put(endpoints("10.1.0.5")) // meanwhile
	r.serve(addr)
	expect("10.96.0.7:80  Service shop/web: 1 endpoints are ready, mTLS reaches 1") // and nothing of what is as before
	r.end()
	r.x = discovery.New() // another replica, which knows of a pod alone
	r.put(pod("other", "10.1.0.5"))
	write("token", []byte("viewer"))
	r.serve(addr)
	expect("10.96.0.7:80  nobody", "10.1.0.5:8080  pod shop/other on node n1, mTLS reaches it: false")
	if n := r.asked.Load(); n != 3 {
		t.Errorf("%d streams", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	write("token", []byte("nobody"))
	if err := watch(t.Context(), o, io.Discard, io.Discard); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("without the right: %v", err)
	}
	r.end()
}
