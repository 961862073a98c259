package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"
	"conduit.io/conduit/api/kube"
	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/api/nodev1/nodev1connect"
	"conduit.io/conduit/tests/apiserver"

	"connectrpc.com/connect"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// site is an API server with replicas of the controller.
type site struct {
	t      *testing.T
	client *kubernetes.Clientset
	server *apiserver.Server
}

// replica is a running controller.
type replica struct {
	*cluster
	addr, admin string
	end         func() // waits until it has drained
}

func newSite(t *testing.T) *site {
	s := &site{t: t, server: apiserver.Start(t)}
	s.client = kubernetes.NewForConfigOrDie(s.server.Config)
	for _, ns := range []string{"conduit", "shop"} {
		s.must(s.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns,
			Labels: map[string]string{kube.LabelMesh: kube.Enabled}}}, metav1.CreateOptions{}))
	}
	s.must(s.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "other", Effect: corev1.TaintEffectNoSchedule},
			{Key: kube.TaintNotReady, Effect: corev1.TaintEffectNoSchedule}}}}, metav1.CreateOptions{}))
	for _, name := range []string{"conduit-agent", "viewer", "stranger"} {
		s.must(s.client.CoreV1().ServiceAccounts("conduit").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
	}
	s.must(s.client.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "conduit-view"},
		Rules: []rbacv1.PolicyRule{{NonResourceURLs: []string{"/conduit.discovery.v1.DiscoveryService/*", "/conduit.node.v1.NodeService/*"}, Verbs: []string{"get"}}}}, metav1.CreateOptions{}))
	s.must(s.client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "conduit-view"},
		RoleRef:  rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "conduit-view"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "conduit", Name: "viewer"}}}, metav1.CreateOptions{}))
	return s
}

func (s *site) must(_ any, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			s.t.Fatalf("not in time: %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (s *site) pod(ns, name, account, ip string) *corev1.Pod {
	s.t.Helper()
	p, err := s.client.CoreV1().Pods(ns).Create(s.t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: account, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	s.must(p, err)
	p.Status.PodIP, p.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	p, err = s.client.CoreV1().Pods(ns).UpdateStatus(s.t.Context(), p, metav1.UpdateOptions{})
	s.must(p, err)
	return p
}

// token is a token for the controller, bound to a pod unless that is nil.
func (s *site) token(account string, pod *corev1.Pod) string {
	s.t.Helper()
	if pod != nil {
		return s.tokenOf(account, "Pod", pod.Name, pod.UID)
	}
	return s.tokenOf(account, "", "", "")
}

// node is a node's UID.
func (s *site) node(name string) types.UID {
	s.t.Helper()
	n, err := s.client.CoreV1().Nodes().Get(s.t.Context(), name, metav1.GetOptions{})
	s.must(n, err)
	return n.UID
}

// tokenOf is a token that is bound to an object, unless kind is empty.
func (s *site) tokenOf(account, kind, name string, uid types.UID) string {
	s.t.Helper()
	req := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{Audiences: []string{"conduit"}}}
	if kind != "" {
		req.Spec.BoundObjectRef = &authv1.BoundObjectReference{Kind: kind, APIVersion: "v1", Name: name, UID: uid}
	}
	res, err := s.client.CoreV1().ServiceAccounts("conduit").CreateToken(s.t.Context(), account, req, metav1.CreateOptions{})
	s.must(res, err)
	return res.Status.Token
}

// start runs a replica until the test ends, or end is called.
func (s *site) start() *replica {
	s.t.Helper()
	api, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(api, err)
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(admin, err)
	ctx, cancel := context.WithCancel(context.Background())
	c, err := newCluster(ctx, ClusterConfig{Kube: s.server.Config, Advertise: api.Addr().String(), Namespace: "conduit",
		TrustDomain: "cluster.local", DrainTime: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	s.must(c, err)
	done := make(chan error, 1)
	go func() { done <- c.serve(ctx, func() (net.Listener, error) { return api, nil }, admin) }()
	r := &replica{cluster: c, addr: api.Addr().String(), admin: "http://" + admin.Addr().String()}
	r.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("serve: %v", err)
		}
	})
	s.t.Cleanup(r.end)
	s.eventually("the replica is ready", func() bool { return c.ready() == nil })
	return r
}

// http is a client that trusts the mesh's roots, with a token.
func (r *replica) http(t *testing.T, token string) *http.Client {
	t.Helper()
	cfg, err := r.peer()
	if err != nil {
		t.Fatal(err)
	}
	cfg.NextProtos = nil
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: bearer{tr, token}}
}

type bearer struct {
	http.RoundTripper
	token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.RoundTripper.RoundTrip(r)
}

// TestNothingIsServedBeforeTheClusterIsRead: a replica that cannot say anything yet is not listened for, and says that it is not ready.
func TestNothingIsServedBeforeTheClusterIsRead(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c, err := newCluster(ctx, ClusterConfig{Kube: &rest.Config{Host: "https://" + gone.Addr().String()}, Advertise: "127.0.0.1:1", Namespace: "conduit",
		TrustDomain: "cluster.local", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- c.serve(ctx, func() (net.Listener, error) { return nil, errors.New("it was listened for") }, admin)
	}()
	res, err := http.Get("http://" + admin.Addr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("/readyz answers %d", res.StatusCode)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestCluster is a controller of two replicas before a real API server, from the outside.
func TestCluster(t *testing.T) {
	s := newSite(t)
	agent, web := s.pod("conduit", "agent-1", "conduit-agent", "192.0.2.1"), s.pod("shop", "web", "default", "10.1.0.1")
	one := s.start()
	s.eventually("the first leads", one.election.Leads)
	two := s.start()
	agentToken := s.token("conduit-agent", agent)
	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			f(t)
		})
	}
	run("json", func(t *testing.T) { testJSON(t, s, one, web) })
	run("refusals", func(t *testing.T) { testRefusals(t, s, one, agentToken) })
	run("reports", func(t *testing.T) { testReports(t, s, two, agentToken, web) })
	run("watch and drain", func(t *testing.T) { testWatchAndDrain(t, s, one, two, agentToken) })
}

// lookup asks as curl would.
func lookup(t *testing.T, client *http.Client, addr, path, body string) (int, string) {
	t.Helper()
	res, err := client.Post("https://"+addr+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// testJSON is the example for those who build tools: JSON over HTTP, without generated code.
func testJSON(t *testing.T, s *site, r *replica, web *corev1.Pod) {
	client := r.http(t, s.token("viewer", nil))
	status, body := lookup(t, client, r.addr, "/conduit.discovery.v1.DiscoveryService/Lookup", `{"addresses":["10.1.0.1:80"]}`)
	var answer struct {
		Answers   []struct{ Kind, Workload string }
		Workloads []struct {
			UID, Namespace, ServiceAccount string
			Meshed                         bool
		}
	}
	if err := json.NewDecoder(bytes.NewReader([]byte(body))).Decode(&answer); err != nil || status != 200 {
		t.Fatalf("status %d, %s (%v)", status, body, err)
	}
	if len(answer.Answers) != 1 || answer.Answers[0].Kind != "KIND_WORKLOAD" || answer.Workloads[0].UID != string(web.UID) || !answer.Workloads[0].Meshed {
		t.Errorf("answered %s", body)
	}
	if status, body := lookup(t, client, r.addr, "/grpc.health.v1.Health/Check", `{}`); status != 200 || !strings.Contains(body, `"SERVING"`) {
		t.Errorf("health: %d %s", status, body)
	}
	if status, body := lookup(t, client, r.addr, "/conduit.discovery.v1.DiscoveryService/Lookup", `{"addresses":["localhost"]}`); status != 400 || !strings.Contains(body, "invalid_argument") {
		t.Errorf("a name for an address: %d %s", status, body)
	}
	res, err := http.Get(r.admin + "/metrics")
	s.must(res, err)
	text, err := io.ReadAll(res.Body)
	s.must(text, err)
	res.Body.Close()
	for _, want := range []string{"conduit_discovery_workloads 2\n", "conduit_kube_synced 1\n", "conduit_controller_leads 1\n",
		`conduit_controller_calls_total{procedure="/conduit.discovery.v1.DiscoveryService/Lookup",code="ok"} 1`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("metrics lack %q", want)
		}
	}
}

func testRefusals(t *testing.T, s *site, r *replica, agent string) {
	const look, report = "/conduit.discovery.v1.DiscoveryService/Lookup", "/conduit.identity.v1.IdentityService/Certify"
	for _, tt := range []struct {
		name, token, path, body string
		status                  int
	}{
		{"no token", "", look, `{}`, 401},
		{"a forged token", "eyJhbGciOiJub25lIn0.e30.x", look, `{}`, 401},
		{"an administrator's, of another audience", apiserver.Admin, look, `{}`, 401},
		{"an account without permission", s.token("stranger", nil), look, `{}`, 403},
		{"a viewer as an agent", s.token("viewer", nil), report, `{}`, 403},
		{"an agent's account without a pod", s.token("conduit-agent", nil), report, `{}`, 403},
		{"an agent's account, bound to a node", s.tokenOf("conduit-agent", "Node", "n1", s.node("n1")), report, `{}`, 403},
		{"nothing to look up", s.token("viewer", nil), look, `{}`, 400},
		{"an agent that looks around", agent, look, `{}`, 403},
		{"an agent that lists workloads", agent, "/conduit.discovery.v1.DiscoveryService/ListWorkloads", `{}`, 403},
		{"an agent that lists nodes", agent, "/conduit.node.v1.NodeService/ListNodes", `{}`, 403},
		{"the roots, which are public", "", "/conduit.identity.v1.IdentityService/GetRoots", `{}`, 200},
		{"too large", s.token("viewer", nil), look, `{"addresses":["` + strings.Repeat("1", 300<<10) + `"]}`, 429},
	} {
		if status, body := lookup(t, r.http(t, tt.token), r.addr, tt.path, tt.body); status != tt.status {
			t.Errorf("%s: want %d, got %d %s", tt.name, tt.status, status, body)
		}
	}
	cfg, err := r.peer()
	s.must(cfg, err)
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if c, err := tls.Dial("tcp", r.addr, cfg); err == nil {
		c.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

// testReports reports to the replica that does not lead: the leader takes the taint off and writes the condition.
func testReports(t *testing.T, s *site, follower *replica, token string, web *corev1.Pod) {
	client := nodev1connect.NewNodeServiceClient(follower.http(t, token), "https://"+follower.addr, connect.WithGRPC())
	stream, err := client.Report(t.Context())
	s.must(stream, err)
	pod := &nodev1.PodState{Uid: string(web.UID), Namespace: "shop", Name: "web", Enrolment: nodev1.PodState_ENROLMENT_ENROLLED, ObservedGeneration: 1}
	s.must(nil, stream.Send(&nodev1.ReportRequest{Full: true, Agent: &nodev1.AgentState{Version: "v1", Ready: true}, Pods: []*nodev1.PodState{pod}}))
	ack, err := stream.Receive()
	if err != nil || ack.Received != 1 {
		t.Fatalf("got %v, %v", ack, err)
	}
	condition := func() corev1.PodCondition {
		p, err := s.client.CoreV1().Pods("shop").Get(t.Context(), "web", metav1.GetOptions{})
		s.must(p, err)
		for _, c := range p.Status.Conditions {
			if c.Type == kube.ConditionEnrolled {
				return c
			}
		}
		return corev1.PodCondition{}
	}
	s.eventually("the pod is Enrolled", func() bool { c := condition(); return c.Status == corev1.ConditionTrue && c.ObservedGeneration == 1 })
	s.eventually("the taint is off, and the other is not", func() bool {
		n, err := s.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		s.must(n, err)
		has := func(key string) bool {
			return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
		}
		return has("other") && !has(kube.TaintNotReady)
	})
	s.eventually("discovery knows it", func() bool {
		r := follower.index.Lookup([]netip.AddrPort{netip.MustParseAddrPort("10.1.0.1:0")})
		return r.Workloads[0].Enrolment == discoveryv1.Workload_ENROLMENT_ENROLLED
	})
	bypassed := &nodev1.PodState{Uid: pod.Uid, Namespace: "shop", Name: "web", Enrolment: nodev1.PodState_ENROLMENT_BYPASSED, Reason: "Unrouted", Message: "its rule is gone"}
	s.must(nil, stream.Send(&nodev1.ReportRequest{Pods: []*nodev1.PodState{bypassed}}))
	s.eventually("the pod is not Enrolled, and why", func() bool { c := condition(); return c.Status == corev1.ConditionFalse && c.Reason == "Unrouted" })
	typo := []byte(`{"metadata":{"labels":{"conduit.io/mesh":"enable"}}}`)
	s.must(s.client.CoreV1().Namespaces().Patch(t.Context(), "conduit", types.MergePatchType, typo, metav1.PatchOptions{}))
	s.eventually("what is misspelt is told", func() bool {
		events, err := s.client.CoreV1().Events("conduit").List(t.Context(), metav1.ListOptions{})
		s.must(events, err)
		return slices.ContainsFunc(events.Items, func(e corev1.Event) bool {
			return e.Reason == "MisspeltForMesh" && e.InvolvedObject.Kind == "Namespace"
		})
	})
	s.eventually("there is an Event", func() bool {
		events, err := s.client.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
		s.must(events, err)
		return len(events.Items) == 1 && events.Items[0].Reason == "Unrouted" && events.Items[0].InvolvedObject.UID == web.UID
	})
	status, body := lookup(t, follower.http(t, s.token("viewer", nil)), follower.addr, "/conduit.node.v1.NodeService/ListNodes", `{"pods":true}`)
	if status != 200 || !strings.Contains(body, `"connected":true`) || !strings.Contains(body, "ENROLMENT_BYPASSED") {
		t.Errorf("listed: %d %s", status, body)
	}
	s.must(nil, stream.CloseRequest())
	if ack, err := stream.Receive(); err != nil || ack.Received != 2 {
		t.Errorf("the second report: %v, %v", ack, err)
	}
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after its client has ended it, the stream ended with %v", err)
	}
}

// testWatchAndDrain watches by the leader until it goes away, and then by the other, which leads next.
func testWatchAndDrain(t *testing.T, s *site, one, two *replica, token string) {
	watch := func(r *replica) *connect.BidiStreamForClientSimple[discoveryv1.WatchRequest, discoveryv1.WatchResponse] {
		client := discoveryv1connect.NewDiscoveryServiceClient(r.http(t, token), "https://"+r.addr, connect.WithGRPC())
		stream, err := client.Watch(t.Context())
		s.must(stream, err)
		s.must(nil, stream.Send(&discoveryv1.WatchRequest{Subscribe: []*discoveryv1.Address{{Ip: []byte{10, 1, 0, 7}}}}))
		first, err := stream.Receive()
		if err != nil || !first.Reset_ || first.Locality.GetNode() != "n1" || first.Answers[0].Kind != discoveryv1.Answer_KIND_NOBODY {
			t.Fatalf("first: %v, %v", first, err)
		}
		return stream
	}
	stream := watch(one)
	p := s.pod("shop", "late", "default", "10.1.0.7")
	news, err := stream.Receive()
	if err != nil || news.Reset_ || len(news.Workloads) != 1 || news.Workloads[0].Uid != string(p.UID) {
		t.Fatalf("news: %v, %v", news, err)
	}
	one.end()
	if _, err := stream.Receive(); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("the drained replica ended the stream with %v", err)
	}
	s.eventually("the other leads", two.election.Leads)
}
