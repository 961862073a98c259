package enrol

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// told is a Directory with one View.
type told struct {
	view discovery.View
	none bool
}

func (*told) Reset([]netip.AddrPort)  {}
func (*told) Lookup(*node.Lookup)     {}
func (*told) Local([]netip.Addr)      {}
func (d *told) View() *discovery.View { return &d.view }
func (d *told) Told() bool            { return !d.none }

// ownPod is a Manager of node n1 with the pod shop/web, enrolled, whose service the controller has told of.
func ownPod(t *testing.T, mode mesh.Mode) (*Manager, *api, *pod) {
	t.Helper()
	attachments, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := []netip.Addr{netip.MustParseAddr("10.1.0.7")}
	w := mesh.Workload{UID: "u", Namespace: "shop", Name: "web", ServiceAccount: "default", Node: "n1", Addrs: at, Meshed: true, Mode: mode, Down: mesh.DownOpen}
	from := &api{&manifest.Objects{}}
	said := w
	said.Meshed = false
	m := New(Config{Node: "n1", TrustDomain: "d", Objects: from, Directory: &told{view: discovery.View{Workloads: []mesh.Workload{said}}}, Store: attachments,
		Keeper: identity.NewKeeper(nil, nil), Log: slog.New(slog.DiscardHandler)})
	a := &store.Attachment{ContainerID: "c", IfName: "eth0", Cookie: 1, Namespace: "shop", Pod: "web", PodUID: "u", Addrs: at, Workload: w}
	p := &pod{cookie: 1, attachments: map[store.Key]*store.Attachment{a.Key(): a}, workload: w, enrolled: true}
	m.pods[1] = p
	return m, from, p
}

// read has the API server describe the pod, as part of the mesh or not.
func (a *api) read(mode mesh.Mode, mesh string) {
	notes := map[string]string{kube.AnnotationMode: string(mode)}
	a.objects = &manifest.Objects{
		Namespaces: map[string]*corev1.Namespace{"shop": {ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{kube.LabelMesh: mesh}, Annotations: notes}}},
		Pods: map[manifest.Name]*corev1.Pod{{Namespace: "shop", Name: "web"}: {ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: types.UID("u")},
			Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}},
	}
}

// byTLS reports whether the pods of the node are told to reach the pod by mTLS.
func (m *Manager) byTLS(t *testing.T) bool {
	t.Helper()
	m.refresh()
	if n := len(m.snapshot.Workloads); n != 1 || m.snapshot.Workloads[0].UID != "u" || len(m.snapshot.Workloads[0].Addrs) != 1 {
		t.Fatalf("the snapshot has %+v", m.snapshot.Workloads)
	}
	return m.snapshot.Workloads[0].Meshed
}

// An agent that has just begun knows the node's pods before it has read the API server: a service of theirs that the controller tells of
// meanwhile is no reason to reach them in plaintext.
func TestPodsAreKnownBeforeTheAPIServerIsRead(t *testing.T) {
	m, from, _ := ownPod(t, mesh.Strict)
	if !m.byTLS(t) {
		t.Error("before the API server was read: in plaintext")
	}
	from.read(mesh.Strict, kube.Enabled)
	if !m.byTLS(t) {
		t.Error("after the API server was read: in plaintext")
	}
}

// A running pod that is to be in the mesh takes mTLS from when the kernel steers it: until then the others of its node reach it as those of
// other nodes do.
func TestPodTakesMTLSFromWhenItIsEnrolled(t *testing.T) {
	m, from, p := ownPod(t, mesh.Permissive)
	for _, tc := range []struct {
		what             string
		label            string
		mode             mesh.Mode
		enrolled, adding bool
		want             bool
	}{
		{"to be enrolled", kube.Enabled, mesh.Permissive, false, false, false},
		{"to be enrolled, STRICT", kube.Enabled, mesh.Strict, false, false, true},
		{"being added", kube.Enabled, mesh.Permissive, false, true, true},
		{"enrolled", kube.Enabled, mesh.Permissive, true, false, true},
		{"to leave", kube.Disabled, mesh.Permissive, true, false, false},
		{"outside", kube.Disabled, mesh.Strict, false, false, false},
	} {
		from.read(tc.mode, tc.label)
		p.enrolled, p.adding = tc.enrolled, tc.adding
		if got := m.byTLS(t); got != tc.want {
			t.Errorf("%s: by mTLS: %v", tc.what, got)
		}
	}
	// Without its attachment it cannot be enrolled.
	clear(m.pods)
	from.read(mesh.Permissive, kube.Enabled)
	from.objects.Pods[manifest.Name{Namespace: "shop", Name: "web"}].Status.PodIP = "10.1.0.7"
	if m.byTLS(t) {
		t.Error("a pod that was not taken up is to be reached by mTLS")
	}
}

// A proxy that starts together with its agent takes a pod over from another one when it can do what that one does, and at once where there
// is none.
func TestPodStaysWithTheProxyBefore(t *testing.T) {
	m, _, p := ownPod(t, mesh.Strict)
	heard := m.cfg.Directory.(*told)
	ca, err := identity.OpenCA(t.TempDir(), "d", nil)
	if err != nil {
		t.Fatal(err)
	}
	without, with := m.cfg.Keeper, identity.NewKeeper(ca, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	var run sync.WaitGroup
	run.Go(func() { with.Run(ctx, func([]*identity.Leaf) {}, func(err error) { t.Error(err) }) })
	if err := with.Await(ctx, p.workload.Identity("d")); err != nil {
		t.Fatal(err)
	}
	cancel()
	run.Wait()
	for _, tc := range []struct {
		what           string
		keeper         *identity.Keeper
		unheard        bool
		change         func()
		served, stands bool
	}{
		{"all is there", with, false, nil, true, false},
		{"no certificate", without, false, nil, true, true},
		{"no word of the controller", with, true, nil, true, true},
		{"nothing is there, and no other proxy", without, true, nil, false, false},
		{"it is the linked one's", without, true, func() { p.held = true }, true, false},
		{"an ADD waits", without, true, func() { p.adding = true }, true, false},
		{"it was not steered", without, true, func() { p.enrolled = false }, true, false},
	} {
		p.held, p.adding, p.enrolled = false, false, true
		m.cfg.Keeper, heard.none = tc.keeper, tc.unheard
		if tc.change != nil {
			tc.change()
		}
		if got := m.early(p, tc.served); got != tc.stands {
			t.Errorf("%s: stays: %v", tc.what, got)
		}
	}
	m.cfg.Directory = nil // files
	p.held, p.adding, p.enrolled, m.cfg.Keeper = false, false, true, with
	if m.early(p, true) {
		t.Error("without a controller it is waited for")
	}
}
