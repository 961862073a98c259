package controlplane

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"conduit.io/conduit/agent/controlplane"
	"conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/api/nodev1/nodev1connect"
	"conduit.io/conduit/control/access"
	"conduit.io/conduit/control/nodes"
)

// The controller holds what the agent sees: at once, after changes, and again after every end of the stream.
func TestReporter(t *testing.T) {
	changed := make(chan struct{}, 1)
	registry := nodes.NewRegistry(time.Now, func(string) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	path, handler := nodev1connect.NewNodeServiceHandler(nodes.NewServer(registry, nil))
	mux := http.NewServeMux()
	mux.HandleFunc(path, func(w http.ResponseWriter, q *http.Request) {
		handler.ServeHTTP(w, q.WithContext(access.With(q.Context(), access.Caller{Node: "n1"})))
	})
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	var now atomic.Pointer[controlplane.Report]
	see := func(pods ...*nodev1.PodState) {
		now.Store(&controlplane.Report{Agent: &nodev1.AgentState{Version: "v", Ready: true}, Pods: pods})
	}
	see(&nodev1.PodState{Uid: "a"})
	reporter := controlplane.NewReporter(controlplane.Config{URL: server.URL, Client: server.Client(), Node: "n1", Log: slog.New(slog.DiscardHandler)},
		func(context.Context) controlplane.Report { return *now.Load() })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); reporter.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		server.CloseClientConnections()
		server.Close()
	})
	eventually := func(what string, ok func(*nodev1.Node) bool) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			n := registry.Get("n1", true)
			if n != nil && ok(n) {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("%s: %v", what, n)
			}
		}
	}
	has := func(want string) func(*nodev1.Node) bool {
		return func(n *nodev1.Node) bool { return n.Connected && len(n.Pods) == 1 && n.Pods[0].Uid == want }
	}
	eventually("the first report", has("a"))
	see(&nodev1.PodState{Uid: "b"})
	reporter.Kick()
	eventually("a change", has("b"))
	registry.Reset() // as when another replica leads
	see(&nodev1.PodState{Uid: "c"})
	eventually("after the stream has ended", has("c"))
	cancel()
	eventually("the agent has ended", func(n *nodev1.Node) bool { return !n.Connected })
}
