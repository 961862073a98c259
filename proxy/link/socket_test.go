package link_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"conduit.io/conduit/api/frame"
	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/proxy/link"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/node"
)

// serveAt is a proxy at path, until end.
func serveAt(t *testing.T, path, build string) (at *link.Socket, end func()) {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	go l.Run(t.Context())
	if at, err = link.Listen(path); err != nil {
		t.Fatal(err)
	}
	srv := link.New(at, node.New(node.Options{Loops: []*loop.Loop{l}, Log: slog.New(slog.DiscardHandler), Build: build}), slog.New(slog.DiscardHandler), nil)
	go srv.Serve()
	t.Cleanup(srv.Close)
	return at, srv.Close
}

// whoServes greets the proxy at path.
func whoServes(t *testing.T, path string) (*frame.Conn, *api.Hello) {
	t.Helper()
	c, err := frame.Dial(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	var m api.Message
	if _, err := c.Receive(&m); err != nil || m.Hello == nil {
		t.Fatalf("hello: %v %+v", err, m)
	}
	return c, m.Hello
}

// A second proxy takes the place of the first, whose agent stays; and when the second one ends, the first is back in its place.
func TestSocketIsTakenAndTakenBack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, as agents are")
	}
	path := filepath.Join(t.TempDir(), "p.sock")
	if link.Alive(path) {
		t.Error("somebody listens at a path at which nothing is")
	}
	first, _ := serveAt(t, path, "first")
	agent, _ := whoServes(t, path)
	if first.Followed() {
		t.Error("the first proxy is followed by nobody")
	}
	_, end := serveAt(t, path, "second")
	if !first.Followed() || !link.Alive(path) {
		t.Error("the second proxy does not follow the first")
	}
	if _, h := whoServes(t, path); h.Build != "second" || h.Displaced {
		t.Errorf("at the path is %+v", h)
	}
	if err := agent.Send(&api.Message{ID: 1, Stats: &api.StatsRequest{}}); err != nil {
		t.Fatal(err)
	}
	var m api.Message
	if _, err := agent.Receive(&m); err != nil || m.Ack == nil {
		t.Errorf("the first proxy's agent has lost it: %v %+v", err, m)
	}
	end()
	for deadline := time.Now().Add(10 * time.Second); first.Followed() || !link.Alive(path); {
		if time.Now().After(deadline) {
			t.Fatal("the first proxy does not take its place back")
		}
	}
	if _, h := whoServes(t, path); h.Build != "first" || !h.Displaced {
		t.Errorf("at the path is %+v; want the first one, which knows that it was displaced", h)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
}

// A proxy whose place another one has had for a while leads its connections there; and one that left a dead socket takes no place.
func TestPastIsToldOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.sock")
	first, _ := serveAt(t, path, "first")
	second, _ := serveAt(t, path, "second")
	select {
	case <-first.Past():
	case <-time.After(2 * link.HandOver):
		t.Error("the first proxy does not notice that it is past")
	}
	select {
	case <-second.Past():
		t.Error("the second proxy takes itself for past")
	default:
	}
}
