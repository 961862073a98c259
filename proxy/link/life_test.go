package link_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/api/frame"
	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/node"
)

// local is a client pod and two server pods on one node.
func local(t *testing.T, proto mesh.Protocol, endpoints ...string) *testNode {
	t.Helper()
	return localOn(t, startNode(t), proto, endpoints...)
}

func localOn(t *testing.T, n *testNode, proto mesh.Protocol, endpoints ...string) *testNode {
	t.Helper()
	n.ca = newCA(t)
	snap := &api.Snapshot{
		Version: 1, TrustDomain: "test",
		Workloads: []mesh.Workload{
			workload("client", "n1", clientIP), workload("web", "n1", webIP), workload("web2", "n1", web2IP),
		},
		Services: []mesh.Service{service("web", "127.9.9.1", 7080, proto, endpoints...)},
	}
	n.must(&api.Message{Snapshot: snap})
	n.certify(n.ca, "client", "web", "web2")
	n.addPod(101, snap.Workloads[0], "", httpSvc+",127.9.9.3:7000")
	n.addPod(202, snap.Workloads[1], webMesh, "")
	n.addPod(203, snap.Workloads[2], "", "")
	return n
}

func TestOneHopOnTheSameNode(t *testing.T) {
	n := local(t, mesh.Detect, webIP+":8080", web2IP+":8080")
	httpApp(t, webIP+":8080", "one")
	httpApp(t, web2IP+":8080", "two")
	seen := map[string]int{}
	c := httpClient(t, true)
	for range 60 {
		_, body, _ := get(t, c, "http://"+httpSvc+"/")
		seen[strings.Fields(body)[0]]++
	}
	if seen["one"] == 0 || seen["two"] == 0 { // how many each gets depends on how fast it was
		t.Errorf("spread %v", seen)
	}
	n.want(`request_total{direction="outbound",src="shop/client",dst="shop/web",protocol="http2",tls="local",route="default"} 60`,
		`conduit_proxy_mesh_connections_dialled_total 0`)
}

// The same over a link, as between nodes, where that is wanted; but a pod reaches itself directly.
func TestLinkOnTheSameNode(t *testing.T) {
	n := localOn(t, startNode(t, func(o *node.Options) { o.LinkSameNode = true }), mesh.Detect, webIP+":8080", clientIP+":8080")
	httpApp(t, webIP+":8080", "one")
	httpApp(t, clientIP+":8080", "self")
	seen := map[string]int{}
	c := httpClient(t, true)
	for range 60 {
		_, body, _ := get(t, c, "http://"+httpSvc+"/")
		seen[strings.Fields(body)[0]]++
	}
	if seen["one"] == 0 || seen["self"] == 0 {
		t.Errorf("spread %v", seen)
	}
	n.want(fmt.Sprintf(`request_total{direction="inbound",src="shop/client",dst="shop/web",protocol="http2",tls="mtls",route="default"} %d`, seen["one"]),
		`conduit_proxy_mesh_connections_dialled_total 1`)
}

// A pod that calls its own Service reaches itself.
func TestHairpin(t *testing.T) {
	n := local(t, mesh.Detect, clientIP+":8080")
	httpApp(t, clientIP+":8080", "self")
	for _, h2 := range []bool{false, true} {
		if status, body, _ := get(t, httpClient(t, h2), "http://"+httpSvc+"/"); status != 200 || !strings.HasPrefix(body, "self") {
			t.Errorf("h2 %v: %d %q", h2, status, body)
		}
	}
	n.want("conduit_proxy_mesh_connections_dialled_total 0")
}

func TestDeadEndpointIsPassedOver(t *testing.T) {
	n := local(t, mesh.Detect, webIP+":8080", web2IP+":8080")
	httpApp(t, web2IP+":8080", "two")
	for range 10 {
		if status, body, _ := get(t, httpClient(t, false), "http://"+httpSvc+"/"); status != 200 || !strings.HasPrefix(body, "two") {
			t.Fatalf("%d %q", status, body)
		}
	}
	n.want(`response_total{direction="outbound",src="shop/client",dst="shop/web",protocol="http1",tls="local",route="default",classification="success",class="2xx",grpc_status_code="",reason=""} 10`)
}

// The same when the endpoint's node answers and its application does not.
func TestDeadRemoteEndpointIsPassedOver(t *testing.T) {
	for _, proto := range []mesh.Protocol{mesh.HTTP1, mesh.Opaque} {
		t.Run(string(proto), func(t *testing.T) {
			n1, _ := pair(t)
			httpApp(t, webIP+":8080", "web")
			n1.must(&api.Message{Snapshot: &api.Snapshot{
				Version: 6, TrustDomain: "test",
				Workloads: []mesh.Workload{workload("client", "n1", clientIP), workload("web", "n2", webIP)},
				Services:  []mesh.Service{service("web", "127.9.9.1", 7080, proto, webIP+":8080", webIP+":8081")},
			}})
			for range 10 {
				if status, body, h := get(t, httpClient(t, false), "http://"+httpSvc+"/"); status != 200 || !strings.HasPrefix(body, "web") {
					t.Fatalf("%d %q %v", status, body, h)
				}
			}
		})
	}
}

func TestSnapshotAppliesToOpenConnections(t *testing.T) {
	n := local(t, mesh.HTTP1, webIP+":8080")
	httpApp(t, webIP+":8080", "one")
	httpApp(t, web2IP+":8080", "two")
	c := httpClient(t, false)
	if _, body, _ := get(t, c, "http://"+httpSvc+"/"); !strings.HasPrefix(body, "one") {
		t.Fatalf("%q", body)
	}
	n.must(&api.Message{Snapshot: &api.Snapshot{
		Version: 2, TrustDomain: "test", Workloads: []mesh.Workload{workload("client", "n1", clientIP), workload("web2", "n1", web2IP)},
		Services: []mesh.Service{service("web", "127.9.9.1", 7080, mesh.HTTP1, web2IP+":8080")},
	}})
	if _, body, _ := get(t, c, "http://"+httpSvc+"/"); !strings.HasPrefix(body, "two") {
		t.Errorf("after the snapshot: %q", body)
	}
	n.want("conduit_proxy_connections_total 1", "conduit_proxy_snapshot_version 2")
}

func TestStrictRefusesPlaintext(t *testing.T) {
	n := local(t, mesh.Detect)
	n.addPod(204, workload("strict", "n1", "127.9.3.1"), "127.9.3.1:8080", "")
	if c, err := net.Dial("tcp", "127.9.3.1:8080"); err == nil { // else it was reset even before Dial had returned
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if k, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || k > 0 {
			t.Errorf("want a reset, got %v", err)
		}
	}
	n.want("conduit_proxy_refused_plaintext_total 1", `conduit_proxy_connections_failed_total{reason="plaintext-refused"} 1`)
}

func TestPermissiveTakesPlaintext(t *testing.T) {
	n := local(t, mesh.Detect)
	w := workload("open", "n1", "127.9.3.1")
	w.Mode = mesh.Permissive
	ns := otherNetns(t, "127.9.3.1:8080", func(c *net.TCPConn) {
		io.WriteString(c, "hello ")
		echo(c)
	})
	n.addPodIn(ns, 204, w, "127.9.3.1:8080", "")
	c := dial(t, "127.9.3.1:8080")
	io.WriteString(c, "there")
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello there" {
		t.Errorf("%q, %v", b, err)
	}
	n.want(`tcp_open_total{direction="inbound",src="unknown",dst="shop/open",protocol="tcp",tls="none"} 1`)
}

// A destination that nobody knows is reached as if there were no mesh, whatever it speaks.
func TestPassthrough(t *testing.T) {
	n := startNode(t)
	ns := otherNetns(t, "127.9.9.4:9000", func(c *net.TCPConn) {
		b := make([]byte, 100)
		k, _ := c.Read(b)
		fmt.Fprintf(c, "got %s", b[:k])
	})
	n.addPodIn(ns, 101, workload("client", "n1", clientIP), "", "127.9.9.4:9000,127.9.9.5:9000")
	c := dial(t, "127.9.9.4:9000")
	io.WriteString(c, "GET / HTTP/7.7\r\n")
	if b, err := io.ReadAll(c); err != nil || string(b) != "got GET / HTTP/7.7\r\n" {
		t.Errorf("%q, %v", b, err)
	}
	n.want(`tcp_open_total{direction="outbound",src="shop/client",dst="external",protocol="tcp",tls="none"} 1`)
	if c, err := net.Dial("tcp", "127.9.9.5:9000"); err == nil { // nobody listens there
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("want a reset, got %v", err)
		}
	}
	n.want(`conduit_proxy_connections_failed_total{reason="connect-failed"} 1`)
}

func TestRemoveAtOnce(t *testing.T) {
	n := local(t, mesh.Opaque, webIP+":8080")
	tcpApp(t, webIP+":8080", echo)
	c := dial(t, httpSvc)
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	n.must(&api.Message{Remove: &api.Remove{Cookie: 101}})
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("want a reset, got %v", err)
	}
	if _, err := net.Dial("tcp", httpSvc); err == nil {
		t.Error("the listener of a removed pod accepts")
	}
	n.must(&api.Message{Remove: &api.Remove{Cookie: 101}}) // again: no error
	n.want("conduit_proxy_pods 2", "conduit_proxy_connections_open 0")
}

func TestDrain(t *testing.T) {
	n := local(t, mesh.Opaque, webIP+":8080")
	tcpApp(t, webIP+":8080", echo)
	c := dial(t, httpSvc)
	r := bufio.NewReader(c)
	say := func(s string) {
		t.Helper()
		fmt.Fprintln(c, s)
		if l, err := r.ReadString('\n'); err != nil || l != s+"\n" {
			t.Fatalf("%q, %v", l, err)
		}
	}
	say("before")
	n.must(&api.Message{Remove: &api.Remove{Cookie: 101, Drain: true}})
	say("while draining")
	if _, err := net.Dial("tcp", httpSvc); err == nil {
		t.Error("the listener of a draining pod accepts")
	}
	n.connect() // a new agent learns of it
	if len(n.hello.Draining) != 1 || n.hello.Draining[0] != 101 || len(n.hello.Pods) != 2 || !n.hello.Kernel || n.hello.Snapshot != 1 {
		t.Errorf("hello %+v", n.hello)
	}
	select {
	case <-n.drains:
		t.Fatal("drained with a connection open")
	default:
	}
	c.Close()
	select {
	case cookie := <-n.drains:
		if cookie != 101 {
			t.Errorf("drained %d", cookie)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("never drained")
	}
	n.want("conduit_proxy_pods_draining 0", "conduit_proxy_pods 2")
}

// Draining a server's pod lets the streams of other proxies end, and sends their links away.
func TestDrainServer(t *testing.T) {
	n1, n2 := pair(t)
	httpApp(t, webIP+":8080", "web")
	if status, _, _ := get(t, httpClient(t, true), "http://"+httpSvc+"/"); status != 200 {
		t.Fatal(status)
	}
	n2.must(&api.Message{Remove: &api.Remove{Cookie: 202, Drain: true}})
	select {
	case <-n2.drains:
	case <-time.After(5 * time.Second):
		t.Fatal("an idle link kept the pod from draining")
	}
	n1.want("conduit_proxy_mesh_connections_open 0")
}

func TestPodComesBack(t *testing.T) {
	n := local(t, mesh.HTTP1, webIP+":8080")
	httpApp(t, webIP+":8080", "one")
	n.must(&api.Message{Remove: &api.Remove{Cookie: 101, Drain: true}})
	n.addPod(101, workload("client", "n1", clientIP), "", httpSvc)
	if status, _, _ := get(t, httpClient(t, false), "http://"+httpSvc+"/"); status != 200 {
		t.Error(status)
	}
	n.want("conduit_proxy_pods 3", "conduit_proxy_pods_draining 0")
}

func TestBadRequests(t *testing.T) {
	n := startNode(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, c := range map[string]struct {
		m     *api.Message
		files []*os.File
		want  string
	}{
		"empty":            {&api.Message{}, nil, "nothing that this version knows"},
		"kernel, no file":  {&api.Message{Kernel: &api.Kernel{}}, nil, "one descriptor"},
		"pod, two files":   {&api.Message{Pod: &api.Pod{Cookie: 1}}, []*os.File{null, null}, "2 descriptors"},
		"pod, no netns":    {&api.Message{Pod: &api.Pod{Cookie: 1}}, []*os.File{null, null, null, null, null}, "network namespace"},
		"unknown pod":      {&api.Message{Pod: &api.Pod{Cookie: 1}}, nil, "not here"},
		"bad certificates": {&api.Message{Certificates: &api.Certificates{Roots: []byte("x")}}, nil, "no PEM"},
	} {
		if a := n.ask(c.m, c.files...); !strings.Contains(a.Error, c.want) {
			t.Errorf("%s: %q", name, a.Error)
		}
	}
	n.want("conduit_proxy_pods 0")
}

func TestNewerAgentReplacesOlder(t *testing.T) {
	n := startNode(t)
	old := n.acks
	n.connect()
	select {
	case _, open := <-old:
		if open {
			t.Error("the older agent got a message")
		}
	case <-time.After(5 * time.Second):
		t.Error("the older connection stays open")
	}
	n.must(&api.Message{Stats: &api.StatsRequest{}})
	c, err := frame.Dial(n.path, time.Second) // garbage ends that connection, not the proxy
	if err != nil {
		t.Fatal(err)
	}
	c.Send("not a message")
	c.Close()
	n.connect()
	n.must(&api.Message{Shutdown: &api.Shutdown{GraceSeconds: 3}})
	if g := <-n.ended; g != 3*time.Second {
		t.Errorf("grace %v", g)
	}
}

// The pods of a node live on several loops, and reach each other all the same.
func TestSeveralShards(t *testing.T) {
	shards = 2
	defer func() { shards = 1 }()
	for name, test := range map[string]func(*testing.T){
		"one hop": TestOneHopOnTheSameNode, "dead endpoint": TestDeadEndpointIsPassedOver, "remove": TestRemoveAtOnce,
		"drain": TestDrain, "mesh": TestHTTPOverTheMesh, "back": TestPodComesBack,
	} {
		t.Run(name, test)
	}
}

// A pod's record may change while its connections are open and its streams wait.
func TestRecordChangesUnderWay(t *testing.T) {
	n := local(t, mesh.Detect, webIP+":8080", "127.9.8.8:8080")
	httpApp(t, webIP+":8080", "one")
	c := httpClient(t, true)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				n.must(&api.Message{Pod: &api.Pod{Cookie: 101, Workload: workload("client", "n1", clientIP)}})
			}
		}
	}()
	for range 50 {
		if status, body, h := get(t, c, "http://"+httpSvc+"/"); status != 200 {
			t.Errorf("%d %q %v", status, body, h)
		}
	}
	close(stop)
	<-done
}
