package link_test

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// onDemand is local, with a snapshot that has the node's own pods alone.
func onDemand(t *testing.T, down mesh.Down) *testNode {
	t.Helper()
	n := startNode(t)
	n.ca = newCA(t)
	client := workload("client", "n1", clientIP)
	client.Down = down
	n.must(&api.Message{Snapshot: ownPods(1)})
	n.certify(n.ca, "client", "web")
	n.addPod(101, client, "", httpSvc)
	n.addPod(202, workload("web", "n1", webIP), "", "")
	return n
}

func ownPods(version uint64) *api.Snapshot {
	return &api.Snapshot{
		Version: version, TrustDomain: "test", OnDemand: true,
		Workloads: []mesh.Workload{workload("client", "n1", clientIP), workload("web", "n1", webIP)},
	}
}

// wantAsked waits until the agent has been asked for exactly add and drop.
func (n *testNode) wantAsked(add, drop string) {
	n.t.Helper()
	select {
	case l := <-n.asked:
		if got, gone := join(l.Add), join(l.Drop); got != add || gone != drop {
			n.t.Fatalf("asked for %q, and no longer for %q", got, gone)
		}
	case <-time.After(5 * time.Second):
		n.t.Fatal("the agent was not asked")
	}
}

func join(all []netip.AddrPort) string {
	var out []string
	for _, a := range all {
		if a.Port() == 0 {
			out = append(out, a.Addr().String())
		} else {
			out = append(out, a.String())
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestConnectionWaitsForItsDestination(t *testing.T) {
	n := onDemand(t, mesh.DownClosed)
	httpApp(t, webIP+":8080", "one")
	answer := make(chan string)
	for range 3 {
		go func() {
			status, body, _ := get(t, httpClient(t, true), "http://"+httpSvc+"/")
			answer <- strings.Fields(body)[0]
			if status != 200 {
				t.Errorf("status %d", status)
			}
		}()
	}
	n.wantAsked("127.9.9.1", "")
	s := ownPods(2)
	s.Services = []mesh.Service{service("web", "127.9.9.1", 7080, mesh.Detect, webIP+":8080")}
	n.must(&api.Message{Snapshot: s})
	for range 3 {
		if body := <-answer; body != "one" {
			t.Errorf("%q", body)
		}
	}
	n.want(`request_total{direction="outbound",src="shop/client",dst="shop/web",protocol="http2",tls="local",route="default"} 3`,
		"conduit_proxy_unresolved_total 0")
	select {
	case l := <-n.asked:
		t.Errorf("asked again: %+v", l)
	default:
	}
}

// echoes dials addr and reports whether what was written comes back.
func echoes(t *testing.T, addr string) bool {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	_, _ = io.WriteString(c, "hello")
	_ = c.CloseWrite()
	all, _ := io.ReadAll(c)
	return string(all) == "hello"
}

func TestNobodysAddressIsOutsideTheMesh(t *testing.T) {
	n := onDemand(t, mesh.DownClosed)
	client := workload("other", "n1", "127.9.3.1")
	client.Down = mesh.DownClosed
	n.addPodIn(otherNetns(t, "127.9.9.4:9000", echo), 303, client, "", "127.9.9.4:9000")
	done := make(chan bool)
	go func() { done <- echoes(t, "127.9.9.4:9000") }()
	n.wantAsked("127.9.9.4", "")
	s := ownPods(2)
	s.Nobody = []netip.AddrPort{netip.MustParseAddrPort("127.9.9.4:0")}
	n.must(&api.Message{Snapshot: s})
	if !<-done || !echoes(t, "127.9.9.4:9000") {
		t.Error("no echo")
	}
	n.want("conduit_proxy_unresolved_total 0")
}

// A pod that is open while there is no proxy is open while there is no answer: after a moment, and then at once.
func TestOpenPodGoesOnWithoutAnAnswer(t *testing.T) {
	n := onDemand(t, mesh.DownOpen)
	client := workload("other", "n1", "127.9.3.1")
	client.Down = mesh.DownOpen
	n.addPodIn(otherNetns(t, "127.9.9.4:9000", echo), 303, client, "", "127.9.9.4:9000")
	for range 2 {
		if !echoes(t, "127.9.9.4:9000") {
			t.Error("no echo")
		}
	}
	n.want("conduit_proxy_unresolved_total 2", `conduit_proxy_connections_total 2`)
}

// A pod that is closed while there is no proxy is closed while there is no answer. That may come when all have given up: the next connection
// is served.
func TestNobodyAnswers(t *testing.T) {
	n := onDemand(t, mesh.DownClosed)
	httpApp(t, webIP+":8080", "one")
	ended := make(chan error)
	for range 2 {
		go func() {
			c, err := net.Dial("tcp", httpSvc)
			if err == nil {
				_, err = io.ReadAll(c)
				c.Close()
			}
			ended <- err
		}()
	}
	for range 2 {
		if <-ended == nil {
			t.Error("the connection ended in order")
		}
	}
	n.want("conduit_proxy_unresolved_total 2", `conduit_proxy_connections_failed_total{reason="unresolved"} 2`)
	s := ownPods(2)
	s.Services = []mesh.Service{service("web", "127.9.9.1", 7080, mesh.Detect, webIP+":8080")}
	n.must(&api.Message{Snapshot: s})
	if _, body, _ := get(t, httpClient(t, false), "http://"+httpSvc+"/"); !strings.HasPrefix(body, "one") {
		t.Errorf("%q", body)
	}
}

// A connection that would be refused has its own time to wait, whoever has given up on the address before it.
func TestLatecomerWaitsToo(t *testing.T) {
	n := onDemand(t, mesh.DownClosed)
	httpApp(t, webIP+":8080", "one")
	open := workload("other", "n1", "127.9.3.1")
	open.Down = mesh.DownOpen
	n.addPodIn(otherNetns(t, "127.9.9.1:9000", echo), 303, open, "", "127.9.9.1:9000")
	answer := make(chan string)
	ask := func() {
		_, body, _ := get(t, httpClient(t, false), "http://"+httpSvc+"/")
		answer <- strings.Fields(body + " -")[0]
	}
	go ask() // begins to wait, and is asked about
	n.wantAsked("127.9.9.1", "")
	if !echoes(t, "127.9.9.1:9000") { // the open pod waits less
		t.Error("no echo")
	}
	n.want("conduit_proxy_unresolved_total 1")
	go ask()
	n.want("conduit_proxy_connections_open 2")
	s := ownPods(2)
	s.Services = []mesh.Service{service("web", "127.9.9.1", 7080, mesh.Detect, webIP+":8080")}
	n.must(&api.Message{Snapshot: s})
	for range 2 {
		if body := <-answer; body != "one" {
			t.Errorf("%q", body)
		}
	}
	n.want("conduit_proxy_unresolved_total 1")
}

// A new agent learns what its predecessor was asked, and what it told unasked; and until it knows an address, what was known of it stays
// in force, for connections that are open and for new ones.
func TestNewAgentIsTold(t *testing.T) {
	n := onDemand(t, mesh.DownClosed)
	httpApp(t, webIP+":8080", "one")
	s := ownPods(2)
	s.Services = []mesh.Service{service("web", "127.9.9.1", 7080, mesh.HTTP1, webIP+":8080")}
	n.must(&api.Message{Snapshot: s}) // as to a proxy that follows another one
	c := httpClient(t, false)
	if _, body, _ := get(t, c, "http://"+httpSvc+"/"); !strings.HasPrefix(body, "one") {
		t.Fatalf("%q", body)
	}
	n.wantAsked("127.9.9.1", "")
	n.agent.Close()
	n.connect()
	if got := join(n.hello.Interest); got != "127.9.9.1" {
		t.Errorf("Hello has %q", got)
	}
	for version := range uint64(2) { // the second agent knows no more
		n.must(&api.Message{Snapshot: ownPods(3 + version)})
		for what, client := range map[string]*http.Client{"the old": c, "a new": httpClient(t, false)} {
			if _, body, _ := get(t, client, "http://"+httpSvc+"/"); !strings.HasPrefix(body, "one") {
				t.Errorf("on %s connection: %q", what, body)
			}
		}
	}
	n.want("conduit_proxy_connections_total 3", "conduit_proxy_unresolved_total 0")
	httpApp(t, webIP+":8081", "two")
	s = ownPods(5)
	s.Services = []mesh.Service{service("web", "127.9.9.1", 7080, mesh.HTTP1, webIP+":8081")}
	n.must(&api.Message{Snapshot: s})
	if _, body, _ := get(t, c, "http://"+httpSvc+"/"); !strings.HasPrefix(body, "two") {
		t.Errorf("when it is known again: %q", body)
	}
}

// A client that gives up while its destination is looked up leaves nothing.
func TestClientGivesUpWaiting(t *testing.T) {
	n := onDemand(t, mesh.DownClosed)
	c := dial(t, httpSvc)
	n.wantAsked("127.9.9.1", "")
	_ = c.SetLinger(0)
	c.Close()
	n.want("conduit_proxy_connections_open 0")
	s := ownPods(2)
	s.Services = []mesh.Service{service("web", "127.9.9.1", 7080, mesh.Detect, webIP+":8080")}
	n.must(&api.Message{Snapshot: s})
	n.want("conduit_proxy_connections_open 0")
}

// Clients of an inbound connection do not wait; that they are known later is enough.
func TestInboundDoesNotWait(t *testing.T) {
	n := onDemand(t, mesh.DownClosed)
	server := workload("other", "n1", "127.9.3.1")
	server.Mode = mesh.Permissive
	n.addPodIn(otherNetns(t, "127.9.3.1:8080", echo), 303, server, "127.9.3.1:8080", "")
	if !echoes(t, "127.9.3.1:8080") {
		t.Error("no echo")
	}
	n.wantAsked("127.0.0.1", "")
	n.want("conduit_proxy_unresolved_total 0")
}
