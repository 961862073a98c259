package discovery

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"
	"conduit.io/conduit/control/access"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
)

// serve serves x over real HTTP/2 to callers that are all the agent of n1.
func serve(t *testing.T, x *Index, cfg Config) (discoveryv1connect.DiscoveryServiceClient, *Server) {
	t.Helper()
	s := NewServer(x, cfg)
	_, h := discoveryv1connect.NewDiscoveryServiceHandler(s)
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(access.With(r.Context(), access.Caller{Node: "n1", Agent: true})))
	}))
	web.EnableHTTP2 = true
	web.StartTLS()
	t.Cleanup(web.Close)
	return discoveryv1connect.NewDiscoveryServiceClient(web.Client(), web.URL, connect.WithGRPC()), s
}

type watch = connect.BidiStreamForClientSimple[discoveryv1.WatchRequest, discoveryv1.WatchResponse]

func open(t *testing.T, c discoveryv1connect.DiscoveryServiceClient, first *discoveryv1.WatchRequest) *watch {
	t.Helper()
	st, err := c.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a context that ends does not reach the server while nobody reads or writes
		_ = st.CloseRequest()
		_ = st.CloseResponse()
	})
	if err := st.Send(first); err != nil && !errors.Is(err, io.EOF) { // refused already: Receive says why
		t.Fatal(err)
	}
	return st
}

func receive(t *testing.T, st *watch) *discoveryv1.WatchResponse {
	t.Helper()
	r, err := st.Receive()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestResume: at the same replica a stream goes on where an earlier one ended, and sends what changed in between; at another
// one it begins anew.
func TestResume(t *testing.T) {
	x := shop(t)
	client, _ := serve(t, x, Config{})
	ask := &discoveryv1.WatchRequest{Subscribe: []*discoveryv1.Address{ip("10.96.0.1"), ip("10.96.0.2")}}
	st, m := open(t, client, ask), newMirror()
	m.apply(t, receive(t, st))
	if err := st.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	put(t, x, makeSlice("shop", "web-a", "web", "http", 8080, backend{"10.1.0.2", "web-1", "u-1", false}))
	ask.Resume = m.position
	first := receive(t, open(t, client, ask))
	if first.Reset_ || len(first.Answers) != 0 || len(first.Services) != 0 || len(first.Endpoints) != 1 || !first.Endpoints[0].Replace {
		t.Errorf("resumed with %v", first) // one endpoint was removed: the service's are told as a whole, the other service is not told
	}
	m.apply(t, first)
	if len(m.endpoints["shop/web"]) != 1 || len(m.endpoints["shop/host"]) != 1 {
		t.Errorf("it holds %v", m.endpoints)
	}
	other, _ := serve(t, shop(t), Config{})
	if first := receive(t, open(t, other, ask)); !first.Reset_ || len(first.Services) != 2 {
		t.Errorf("another replica began with %v", first)
	}
}

// TestUpdatesReachClients over the wire, with what the agent says of them.
func TestUpdatesReachClients(t *testing.T) {
	x := shop(t)
	client, s := serve(t, x, Config{})
	st := open(t, client, &discoveryv1.WatchRequest{Subscribe: []*discoveryv1.Address{ip("10.96.0.9")}})
	receive(t, st)
	put(t, x, makeService("shop", "new", "10.96.0.9", corev1.ServicePort{Port: 80}))
	r := receive(t, st)
	if len(r.Services) != 1 || r.Answers[0].Service != "shop/new" {
		t.Errorf("told %v", r)
	}
	if err := st.Send(&discoveryv1.WatchRequest{Applied: r.Position.Version, Subscribe: []*discoveryv1.Address{ip("10.1.0.1")}}); err != nil {
		t.Fatal(err)
	}
	if r := receive(t, st); r.Answers[0].Workload != "u-0" || len(r.Workloads) != 1 { // it was sent after applied was read
		t.Errorf("told %v", r)
	}
	s.metrics.mu.Lock()
	defer s.metrics.mu.Unlock()
	total := uint64(0)
	for _, n := range s.metrics.buckets {
		total += n
	}
	if total != 1 {
		t.Errorf("%d propagations were measured", total)
	}
}

func ends(t *testing.T, st *watch) error {
	t.Helper()
	for {
		if _, err := st.Receive(); err != nil {
			return err
		}
	}
}

func TestStreamsAreBounded(t *testing.T) {
	hello := &discoveryv1.WatchRequest{}
	client, _ := serve(t, New(), Config{})
	streams := []*watch{open(t, client, hello)}
	receive(t, streams[0])
	for range maxStreams {
		st := open(t, client, hello)
		receive(t, st)
		streams = append(streams, st)
	}
	if err := ends(t, streams[0]); connect.CodeOf(err) != connect.CodeAborted {
		t.Errorf("the oldest of too many streams of an agent ended with %v", err)
	}
	for _, bad := range []*discoveryv1.WatchRequest{{Subscribe: make([]*discoveryv1.Address, maxSubscribe+1)}, {Resume: &discoveryv1.Position{}}} {
		st := open(t, client, hello)
		receive(t, st)
		if err := st.Send(bad); err != nil {
			t.Fatal(err)
		}
		if err := ends(t, st); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("a message that breaks the limits ended the stream with %v", err)
		}
	}
	rare, _ := serve(t, New(), Config{Starts: 1, MaxWait: time.Nanosecond})
	receive(t, open(t, rare, hello))
	err := ends(t, open(t, rare, hello))
	var e *connect.Error
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Fatalf("a second stream in a second: %v", err)
	}
	if ok := errors.As(err, &e); !ok || e.Meta().Get("Retry-After") != "1" && e.Meta().Get("Retry-After") != "2" {
		t.Errorf("it does not say when to come again: %v", e.Meta())
	}
	unready, _ := serve(t, New(), Config{Synced: func() bool { return false }})
	if err := ends(t, open(t, unready, hello)); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("before the cluster was read: %v", err)
	}
}
