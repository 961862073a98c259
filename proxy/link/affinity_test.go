package link_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// A client stays with its endpoint: over new connections of every protocol and over new snapshots, until the endpoint goes.
func TestSessionAffinity(t *testing.T) {
	const many = 6
	n := local(t, mesh.Detect)
	var eps []string
	for i := range many {
		name := fmt.Sprint("web", i)
		eps = append(eps, fmt.Sprintf("127.9.2.%d:8080", 10+i))
		httpApp(t, eps[i], name)
		tcpApp(t, fmt.Sprintf("127.9.2.%d:7000", 10+i), func(c *net.TCPConn) { io.WriteString(c, name) })
	}
	version := uint64(1)
	show := func(gone string) {
		version++
		web := service("web", "127.9.9.1", 7080, mesh.Detect, without(eps, gone)...)
		web.Affinity = 3600
		tcp := service("tcp", "127.9.9.3", 7000, mesh.Opaque, strings.Split(strings.ReplaceAll(strings.Join(eps, " "), ":8080", ":7000"), " ")...)
		tcp.Affinity = 3600
		n.must(&api.Message{Snapshot: &api.Snapshot{Version: version, TrustDomain: "test",
			Workloads: []mesh.Workload{workload("client", "n1", clientIP)}, Services: []mesh.Service{web, tcp}}})
	}
	// ask makes a new connection.
	ask := func(h2 bool) string {
		_, body, _ := get(t, httpClient(t, h2), "http://"+httpSvc+"/")
		return strings.Fields(body)[0]
	}
	show("")
	first := ask(false)
	for i := range 30 {
		if got := ask(i%2 == 0); got != first {
			t.Fatalf("went to %s after %s", got, first)
		}
		if i == 15 {
			show("")
		}
	}
	var i int
	fmt.Sscanf(first, "web%d", &i)
	show(eps[i])
	second := ask(true)
	if second == first {
		t.Errorf("still at %s, which has gone", first)
	}
	show("")
	for range 10 {
		if got := ask(true); got != second {
			t.Errorf("went to %s after %s", got, second)
		}
	}
	read := func() string {
		all, _ := io.ReadAll(dial(t, "127.9.9.3:7000"))
		return string(all)
	}
	opaque := read()
	for range 20 {
		if got := read(); got != opaque || opaque == "" {
			t.Fatalf("opaque: went to %q after %q", got, opaque)
		}
	}
}

func without(all []string, gone string) []string {
	var out []string
	for _, s := range all {
		if s != gone {
			out = append(out, s)
		}
	}
	return out
}
