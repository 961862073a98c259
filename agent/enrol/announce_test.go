package enrol

import (
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/api/frame"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// peer is a proxy's end of a link.
type peer struct {
	t *testing.T
	*frame.Conn
}

// linked is a link and the other end of it.
func linked(t *testing.T) (*proxylink.Link, peer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "p.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	came := make(chan *frame.Conn, 1)
	go func() {
		if u, err := ln.AcceptUnix(); err == nil {
			c := frame.New(u)
			c.Send(&node.Message{Hello: &node.Hello{Version: node.Version}})
			came <- c
		}
	}()
	l, err := proxylink.Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	c := <-came
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return l, peer{t, c}
}

// answer takes the next request and answers it, with an error unless that is empty.
func (p peer) answer(failure string) *node.Message {
	p.t.Helper()
	m := &node.Message{}
	if _, err := p.Receive(m); err != nil {
		p.t.Fatal(err)
	}
	if err := p.Send(&node.Message{ID: m.ID, Ack: &node.Ack{Error: failure}}); err != nil {
		p.t.Fatal(err)
	}
	return m
}

// The proxy is told everything once, and then what changes; and everything again when it is not known what it has.
func TestProxyIsToldWhatChanges(t *testing.T) {
	l, p := linked(t)
	m := New(Config{Log: slog.New(slog.DiscardHandler)})
	m.link = l
	version := uint64(0)
	show := func(names ...string) {
		version++
		s := &node.Snapshot{Version: version}
		for _, n := range names {
			s.Workloads = append(s.Workloads, mesh.Workload{UID: n})
		}
		m.snapshot = s
	}
	publish := func(failure string) *node.Message {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- m.publish(t.Context()) }()
		told := p.answer(failure)
		if err := <-done; (err != nil) != (failure != "") {
			t.Errorf("%q makes %v", failure, err)
		}
		return told
	}
	show("a", "b")
	if got := publish(""); got.Snapshot == nil || len(got.Snapshot.Workloads) != 2 {
		t.Errorf("at first: %+v", got)
	}
	show("a", "b", "c")
	if got := publish(""); got.Update == nil || got.Update.Base != 1 || len(got.Update.Snapshot.Workloads) != 1 {
		t.Errorf("then: %+v", got)
	}
	show("a", "c")
	if got := publish("no"); got.Update == nil || got.Update.Base != 2 {
		t.Errorf("later: %+v", got)
	}
	if got := publish(""); got.Snapshot == nil || got.Snapshot.Version != 3 {
		t.Errorf("after a refusal: %+v", got)
	}
	if err := m.publish(t.Context()); err != nil { // nobody answers: there is nothing to say
		t.Error(err)
	}
}
