package enrol

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conduit.io/conduit/agent/cnicache"
	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/agent/podnet"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/podapi"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// spaces are network namespaces with an eth0 each, as pods have them.
type spaces struct {
	t      *testing.T
	prefix string
}

func newSpaces(t *testing.T) *spaces {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root to make network namespaces")
	}
	return &spaces{t: t, prefix: "cdttu" + fmt.Sprint(os.Getpid())}
}

func (s *spaces) path(name string) string { return "/run/netns/" + s.prefix + name }

func (s *spaces) add(name string, addrs ...string) string {
	s.t.Helper()
	ns := s.prefix + name
	s.ip("netns add " + ns)
	s.t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	s.ip("-n " + ns + " link add eth0 type veth peer name peer0")
	for _, a := range addrs {
		s.ip("-n " + ns + " addr add " + a + " dev eth0")
	}
	return s.path(name)
}

// own is a path of the namespace that this process is in.
func (s *spaces) own() string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "own")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Close(), unix.Mount("/proc/self/ns/net", path, "", unix.MS_BIND, ""))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { unix.Unmount(path, 0) })
	return path
}

// process is the path of a namespace by a process that is in it.
func (s *spaces) process(name string) string {
	s.t.Helper()
	cmd := exec.Command("ip", "netns", "exec", s.prefix+name, "sleep", "600")
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
}

func (s *spaces) ip(args string) {
	s.t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		s.t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
}

// api is what the API server says.
type api struct{ objects *manifest.Objects }

func (a *api) Objects() (*manifest.Objects, uint64)                 { return a.objects, 1 }
func (a *api) Find(context.Context, manifest.Name) bool             { return false }
func (a *api) Missing(manifest.Name, bool, bool) (who, hint string) { return "", "" }
func (a *api) Stale() string                                        { return "" }

// lone is a Manager that has been told of no pod.
type lone struct {
	*Manager
	api     *api
	records []cnicache.Record
	err     error
}

func newLone(t *testing.T) *lone {
	t.Helper()
	attachments, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n := &lone{api: &api{&manifest.Objects{Namespaces: map[string]*corev1.Namespace{
		"shop": {ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{kube.LabelMesh: kube.Enabled}}}}, Pods: map[manifest.Name]*corev1.Pod{}}}}
	n.Manager = New(Config{Node: "n1", TrustDomain: "d", Objects: n.api, Store: attachments, Log: slog.New(slog.DiscardHandler),
		Records: func() ([]cnicache.Record, error) { return n.records, n.err }})
	return n
}

func (n *lone) pod(name, uid string, ips ...string) *corev1.Pod {
	d := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(uid)},
		Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	for _, ip := range ips {
		d.Status.PodIPs = append(d.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	n.api.objects.Pods[manifest.Name{Namespace: "shop", Name: name}] = d
	return d
}

func record(pod, uid, container, netns string, addrs ...string) cnicache.Record {
	r := cnicache.Record{Network: "pods", ContainerID: container, IfName: "eth0", Netns: netns, Namespace: "shop", Pod: pod, PodUID: uid}
	for _, a := range addrs {
		r.Addrs = append(r.Addrs, netip.MustParseAddr(a))
	}
	return r
}

// taken is who has which namespace, as pod=path.
func (n *lone) taken() (out []string) {
	for _, p := range n.pods {
		for _, a := range p.attachments {
			out = append(out, a.Pod+"="+filepath.Base(a.Netns))
		}
	}
	slices.Sort(out)
	return out
}

// Running pods are found by the runtime's records, and never in a namespace that may not be theirs: whatever records are left over,
// and whatever addresses pods have given themselves.
func TestTakeUp(t *testing.T) {
	s := newSpaces(t)
	web := s.add("web", "10.7.0.2/24", "fd07::2/64")
	evil := s.add("evil", "10.7.0.3/24", "10.7.0.2/32")  // it has given itself web's address
	thief := s.add("thief", "10.7.0.2/24", "fd07::2/64") // and this one has web's addresses alone
	bare := s.add("bare")
	tests := []struct {
		name    string
		pods    func(n *lone)
		records []cnicache.Record
		want    []string // pod=namespace
		strays  map[string]string
	}{
		{"by its record", func(n *lone) { n.pod("web", "u1", "10.7.0.2", "fd07::2") },
			[]cnicache.Record{record("web", "u1", "c1", web, "10.7.0.2", "fd07::2")}, []string{"web=web"}, nil},
		{"a runtime that does not say UIDs", func(n *lone) { n.pod("web", "u1", "10.7.0.2") },
			[]cnicache.Record{record("web", "", "c1", web, "10.7.0.2", "fd07::2")}, []string{"web=web"}, nil},
		{"in its init containers", func(n *lone) { n.pod("web", "u1", "10.7.0.2").Status.Phase = corev1.PodPending },
			[]cnicache.Record{record("web", "u1", "c1", web, "10.7.0.2", "fd07::2")}, []string{"web=web"}, nil},
		{"another pod has taken its address, too", func(n *lone) { n.pod("web", "u1", "10.7.0.2"); n.pod("evil", "u2", "10.7.0.3") },
			[]cnicache.Record{record("evil", "u2", "c2", evil, "10.7.0.3"), record("web", "u1", "c1", web, "10.7.0.2", "fd07::2")},
			[]string{"evil=evil", "web=web"}, nil},
		{"no record, and another pod has taken its addresses", func(n *lone) { n.pod("web", "u1", "10.7.0.2"); n.pod("thief", "u2", "10.7.0.9") },
			[]cnicache.Record{record("thief", "u2", "c2", thief, "10.7.0.9")}, nil, map[string]string{"web": "NetworkNotFound", "thief": "NetworkNotFound"}},
		{"two namespaces", func(n *lone) { n.pod("web", "u1", "10.7.0.2") },
			[]cnicache.Record{record("web", "u1", "c1", web, "10.7.0.2", "fd07::2"), record("web", "u1", "c9", thief, "10.7.0.2", "fd07::2")},
			nil, map[string]string{"web": "NetworkAmbiguous"}},
		{"two pods, one namespace", func(n *lone) { n.pod("web", "u1", "10.7.0.2"); n.pod("twin", "u2", "10.7.0.2") },
			[]cnicache.Record{record("web", "u1", "c1", web, "10.7.0.2"), record("twin", "u2", "c2", web, "10.7.0.2")}, nil, map[string]string{"one of them": "NetworkAmbiguous"}},
		{"an older sandbox is still there", func(n *lone) { n.pod("web", "u1", "10.7.0.2") },
			[]cnicache.Record{record("web", "u1", "c0", thief, "10.7.0.77"), record("web", "u1", "c1", web, "10.7.0.2", "fd07::2")}, []string{"web=web"}, nil},
		{"the record is an earlier pod's", func(n *lone) { n.pod("web", "u1", "10.7.0.2") },
			[]cnicache.Record{record("web", "u0", "c0", web, "10.7.0.2")}, nil, map[string]string{"web": "NetworkNotFound"}},
		{"of a namespace of the same name", func(n *lone) { n.pod("web", "u1", "10.7.0.2") },
			[]cnicache.Record{func() cnicache.Record { r := record("web", "", "c0", web, "10.7.0.2"); r.Namespace = "other"; return r }()}, nil, map[string]string{"web": "NetworkNotFound"}},
		{"the node's own namespace", func(n *lone) { n.pod("web", "u1", "10.7.0.2") },
			[]cnicache.Record{record("web", "u1", "c1", s.own(), "10.7.0.2")}, nil, map[string]string{"web": "NetworkNotFound"}},
		{"the namespace of a process", func(n *lone) { n.pod("web", "u1", "10.7.0.2") },
			[]cnicache.Record{record("web", "u1", "c1", "/run/../"+s.process("web"), "10.7.0.2")}, nil, map[string]string{"web": "NetworkNotFound"}},
		{"gone", func(n *lone) { n.pod("web", "u1", "10.7.0.2") },
			[]cnicache.Record{record("web", "u1", "c1", s.path("none"), "10.7.0.2")}, nil, map[string]string{"web": "NetworkNotFound"}},
		{"the path leads to another namespace by now", func(n *lone) { n.pod("web", "u1", "10.7.0.2") },
			[]cnicache.Record{record("web", "u1", "c1", bare, "10.7.0.2")}, nil, map[string]string{"web": "NetworkNotFound"}},
		{"the kubelet says other addresses", func(n *lone) { n.pod("web", "u1", "10.7.0.8") },
			[]cnicache.Record{record("web", "u1", "c1", web, "10.7.0.2")}, nil, map[string]string{"web": "NetworkNotFound"}},
		{"a record that would leave the store", func(n *lone) { n.pod("web", "u1", "10.7.0.2") },
			[]cnicache.Record{record("web", "u1", "../../c1", web, "10.7.0.2")}, nil, map[string]string{"web": "NetworkNotFound"}},
		{"of no concern", func(n *lone) {
			n.pod("host", "u1", "10.7.0.2").Spec.HostNetwork = true
			n.pod("over", "u2", "10.7.0.2").Status.Phase = corev1.PodSucceeded
			n.pod("elsewhere", "u3", "10.7.0.2").Spec.NodeName = "n2"
			n.pod("early", "u4")
		}, []cnicache.Record{record("host", "u1", "c1", web, "10.7.0.2"), record("over", "u2", "c2", web, "10.7.0.2"),
			record("elsewhere", "u3", "c3", web, "10.7.0.2"), record("early", "u4", "c4", web, "10.7.0.2")}, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newLone(t)
			tt.pods(n)
			n.records = tt.records
			n.takeUp(false)
			got := n.taken()
			for i := range got {
				got[i] = strings.Replace(got[i], s.prefix, "", 1)
			}
			if tt.strays["one of them"] != "" {
				if len(got) != 1 || len(n.strays) != 1 {
					t.Fatalf("taken up: %v, strays: %v", got, n.strays)
				}
				return
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("taken up: %v, want %v", got, tt.want)
			}
			if len(n.strays) != len(tt.strays) {
				t.Errorf("strays: %v", n.strays)
			}
			for name, reason := range tt.strays {
				if got := n.Strays()[manifest.Name{Namespace: "shop", Name: name}]; got.Reason != reason || got.Message == "" {
					t.Errorf("%s: %+v, want %s", name, got, reason)
				}
			}
			if kept, err := n.cfg.Store.Load(); err != nil || len(kept) != len(tt.want) {
				t.Errorf("stored: %v, %v", kept, err)
			}
		})
	}
}

// A pod that is being deleted is not taken up again while the runtime still has its record, and a stray is found when its record comes.
func TestTakeUpBesidePlugin(t *testing.T) {
	s := newSpaces(t)
	web := s.add("web", "10.7.0.2/24")
	n := newLone(t)
	n.err = errors.New("permission denied")
	n.pod("web", "u1", "10.7.0.2")
	n.takeUp(false)
	if why := n.Strays()[manifest.Name{Namespace: "shop", Name: "web"}]; !strings.Contains(why.Message, "permission denied") {
		t.Errorf("without records: %+v", why)
	}
	n.records, n.err = []cnicache.Record{record("web", "u1", "c1", web, "10.7.0.2")}, nil
	n.takeUp(false)
	if got := n.taken(); len(got) != 0 {
		t.Errorf("records are read for a pod that is known to be a stray: %v", got)
	}
	n.takeUp(true)
	if got := n.taken(); len(got) != 1 || len(n.Strays()) != 0 {
		t.Fatalf("taken up: %v, strays %v", got, n.Strays())
	}
	f, err := podnet.Open(web)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	del := &podapi.Request{Op: podapi.Del, ContainerID: "c1", IfName: "eth0", Netns: web}
	delete(n.pods, f.Cookie) // as Del does, which needs the kernel's programs for it
	if e := n.Del(t.Context(), del); e != nil {
		t.Fatal(e)
	}
	n.takeUp(true)
	if got := n.taken(); len(got) != 0 {
		t.Errorf("taken up again while it is deleted: %v", got)
	}
	n.records = nil
	n.takeUp(true)
	if len(n.deleted) != 0 {
		t.Errorf("remembered for ever: %v", n.deleted)
	}
}
