package link_test

import (
	"strings"
	"testing"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// What an update does not name stays, and what it changes is in force when it has been acknowledged; one that is about another snapshot
// changes nothing.
func TestUpdatesOfTheSnapshot(t *testing.T) {
	n := local(t, mesh.Detect)
	httpApp(t, "127.9.2.10:8080", "old")
	httpApp(t, "127.9.2.11:8080", "new")
	show := func(version uint64, at string) *api.Snapshot {
		return &api.Snapshot{Version: version, TrustDomain: "test", Workloads: []mesh.Workload{workload("client", "n1", clientIP)},
			Services: []mesh.Service{service("other", "127.9.9.3", 7000, mesh.Detect, "127.9.2.10:8080"), service("web", "127.9.9.1", 7080, mesh.Detect, at)}}
	}
	ask := func(svc, want string) {
		t.Helper()
		if _, body, _ := get(t, httpClient(t, false), "http://"+svc+"/"); strings.Fields(body)[0] != want {
			t.Errorf("%s is answered by %q, want %q", svc, body, want)
		}
	}
	first, second := show(11, "127.9.2.10:8080"), show(12, "127.9.2.11:8080")
	n.must(&api.Message{Snapshot: first})
	ask(httpSvc, "old")
	n.must(&api.Message{Update: api.Changes(first, second)})
	ask(httpSvc, "new")
	ask("127.9.9.3:7000", "old")
	if a := n.ask(&api.Message{Update: api.Changes(first, show(13, "127.9.2.10:8080"))}); !strings.Contains(a.Error, "version 11") {
		t.Errorf("an update of a snapshot that is not in force is answered by %q", a.Error)
	}
	ask(httpSvc, "new")
}
