package link_test

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// nodeIP is the address of a node, of whose ports some are Services' and some are not.
const nodeIP = "127.9.9.7"

// A port of a node is asked about by itself, once it is known that the address is shared; and led to its Service, or nowhere else.
func TestNodePort(t *testing.T) {
	n := onDemand(t, mesh.DownClosed)
	httpApp(t, webIP+":8080", "one")
	client := workload("other", "n1", "127.9.3.1")
	client.Down = mesh.DownClosed
	// Applications of this pod are in another namespace: what is dialled directly meets the echo there.
	ns := otherNetns(t, nodeIP+":9000", echo)
	files := []string{nodeIP + ":30080", nodeIP + ":9000"}
	n.addPodIn(ns, 303, client, "", strings.Join(files, ","))
	body := make(chan string)
	go func() {
		_, b, _ := get(t, httpClient(t, false), "http://"+nodeIP+":30080/")
		body <- b
	}()
	n.wantAsked(nodeIP, "")
	shared := func(version uint64) *api.Snapshot {
		s := ownPods(version)
		s.ByPort = []netip.Addr{netip.MustParseAddr(nodeIP)}
		return s
	}
	n.must(&api.Message{Snapshot: shared(2)})
	n.wantAsked(nodeIP+":30080", "")
	s := shared(3)
	web := service("web", "127.9.9.1", 80, mesh.HTTP1, webIP+":8080")
	web.Addrs, web.Ports[0].At = nil, []netip.AddrPort{netip.MustParseAddrPort(nodeIP + ":30080")}
	s.Services = []mesh.Service{web}
	n.must(&api.Message{Snapshot: s})
	if got := <-body; !strings.HasPrefix(got, "one") {
		t.Errorf("the NodePort answers %q", got)
	}
	done := make(chan bool)
	go func() { done <- echoes(t, nodeIP+":9000") }()
	n.wantAsked(nodeIP+":9000", "")
	s.Version, s.Nobody = 4, []netip.AddrPort{netip.MustParseAddrPort(nodeIP + ":9000")}
	n.must(&api.Message{Snapshot: s})
	if !<-done {
		t.Error("no echo from another port of the node")
	}
	n.want(`request_total{direction="outbound",src="shop/other",dst="shop/web",protocol="http1",tls="local",route="default"} 1`,
		"conduit_proxy_unresolved_total 0")
	n.agent.Close()
	n.connect()
	if got, want := join(n.hello.Interest), nodeIP+" "+nodeIP+":30080 "+nodeIP+":9000"; got != want {
		t.Errorf("Hello has %q, want %q", got, want)
	}
}

// A load balancer's address that is for some clients alone is for no pod beside them.
func TestSourceRanges(t *testing.T) {
	n := local(t, mesh.HTTP1, webIP+":8080")
	httpApp(t, webIP+":8080", "one")
	for _, tc := range []struct {
		ranges string
		status int
	}{{"127.0.0.0/16", 503}, {"127.0.0.0/8", 200}} {
		web := service("web", "127.9.9.1", 7080, mesh.HTTP1, webIP+":8080")
		web.Sources = []netip.Prefix{netip.MustParsePrefix(tc.ranges)}
		n.must(&api.Message{Snapshot: &api.Snapshot{Version: 2, TrustDomain: "test", Workloads: []mesh.Workload{workload("client", "n1", clientIP), workload("web", "n1", webIP)},
			Services: []mesh.Service{web}}})
		c := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientIP)}}
		conn, err := c.DialContext(t.Context(), "tcp", httpSvc)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		all, _ := io.ReadAll(conn)
		if want := map[int]string{503: "HTTP/1.1 503", 200: "HTTP/1.1 200"}[tc.status]; !strings.HasPrefix(string(all), want) {
			t.Errorf("%s: %.80q, want %s", tc.ranges, all, want)
		}
		conn.Close()
	}
}
