package enrol

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"
)

// gate is a file that keeps whoever opens it waiting until it is let through: a namespace of which the kernel takes its time.
type gate struct {
	t    *testing.T
	path string
}

func newGate(t *testing.T, dir, name string) gate {
	g := gate{t, filepath.Join(dir, name)}
	if err := syscall.Mkfifo(g.path, 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

// pass waits until somebody is at the gate, and lets it through.
func (g gate) pass() {
	g.t.Helper()
	f, err := os.OpenFile(g.path, os.O_WRONLY, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	f.Close()
}

// gated is a Manager with two pods, of which each has to be let through.
func gated(t *testing.T, d Directory) (*Manager, []gate) {
	t.Helper()
	dir := t.TempDir()
	attachments, err := store.Open(filepath.Join(dir, "pods"))
	if err != nil {
		t.Fatal(err)
	}
	m := New(Config{Objects: &api{&manifest.Objects{}}, Directory: d, Store: attachments, Keeper: identity.NewKeeper(nil, nil), Log: slog.New(slog.DiscardHandler)})
	var gates []gate
	for cookie, name := range []string{"first", "second"} {
		g := newGate(t, dir, name)
		gates = append(gates, g)
		a := &store.Attachment{ContainerID: name, IfName: "eth0", Netns: g.path, Cookie: uint64(cookie + 1), Namespace: "shop", Pod: name,
			Workload: mesh.Workload{Namespace: "shop", Name: name, Meshed: true}}
		m.pods[a.Cookie] = &pod{cookie: a.Cookie, attachments: map[store.Key]*store.Attachment{a.Key(): a}, workload: a.Workload, enrolled: true, doubtful: true}
	}
	return m, gates
}

// counted is a Directory that tells how often it is asked.
type counted struct {
	told
	asked chan struct{}
}

func (d *counted) View() *discovery.View {
	d.asked <- struct{}{}
	return &d.view
}

// TestReconciliationGoesOnHearing: what the controller tells while pods are looked at is passed on to the proxy after the one at hand, and
// not after all.
func TestReconciliationGoesOnHearing(t *testing.T) {
	d := &counted{asked: make(chan struct{}, 10)}
	m, gates := gated(t, d)
	m.lock()
	done := make(chan struct{})
	go func() { m.reconcile(t.Context()); m.mu.Unlock(); close(done) }()
	<-d.asked // at its beginning
	m.Kick()
	gates[0].pass()
	select {
	case <-d.asked:
	case <-time.After(10 * time.Second):
		t.Error("the proxy hears nothing until all pods are done")
	}
	gates[1].pass()
	<-done
	select {
	case <-m.kick:
	default:
		t.Error("what has changed of the first pod waits for the next change")
	}
}

// TestReconciliationLetsOthersIn: an ADD that comes while pods are looked at waits for the one at hand, and not for all, also when that one
// is at fault.
func TestReconciliationLetsOthersIn(t *testing.T) {
	m, gates := gated(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m.lock()
	done := make(chan struct{})
	go func() { m.reconcile(ctx); m.mu.Unlock(); close(done) }()
	added := make(chan error, 1)
	go func() {
		_, err := m.attach(ctx, &store.Attachment{ContainerID: "new", IfName: "eth0", Cookie: 3, Namespace: "shop", Pod: "new", Workload: mesh.Workload{Namespace: "shop", Name: "new"}}, nil)
		added <- err
	}()
	for m.turn.TryLock() { // until the ADD waits
		m.turn.Unlock()
		<-time.After(time.Millisecond)
	}
	gates[0].pass()
	select {
	case err := <-added:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("an ADD waits for all pods")
	}
	gates[1].pass()
	<-done
}
