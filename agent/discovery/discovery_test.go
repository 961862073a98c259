package discovery

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/mesh"

	"github.com/google/go-cmp/cmp"
)

func load(t *testing.T, yaml string) *manifest.Objects {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := manifest.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if f := s.Faults(); len(f) > 0 {
		t.Fatalf("manifest: %v", f)
	}
	o, _ := s.Objects()
	return o
}

const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {conduit.io/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}, uid: u-1}
spec:
  serviceAccountName: web
  containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec:
  nodeName: other
  containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]
status:
  podIP: 10.1.0.2
  podIPs: [{ip: 10.1.0.2}, {ip: "fd00::2"}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-unready, namespace: shop, labels: {app: web}}
spec: {nodeName: other}
status: {podIP: 10.1.0.3, conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-leaving, namespace: shop, labels: {app: web}, deletionTimestamp: "2024-03-01T10:00:00Z"}
spec: {nodeName: other}
status: {podIP: 10.1.0.4}
---
apiVersion: v1
kind: Pod
metadata: {name: web-done, namespace: shop, labels: {app: web}}
spec: {nodeName: other}
status: {podIP: 10.1.0.5, phase: Succeeded}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop, labels: {app: host}}
spec: {nodeName: other, hostNetwork: true}
status: {podIP: 192.0.2.9}
---
apiVersion: v1
kind: Pod
metadata: {name: web-foreign, namespace: elsewhere, labels: {app: web}}
spec: {nodeName: other}
status: {podIP: 10.1.0.6}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  selector: {app: web}
  ports:
  - {name: http-main, port: 80, targetPort: http}
  - {name: admin, port: 81, targetPort: 8081, appProtocol: kubernetes.io/h2c}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: host, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: host}, ports: [{port: 443, targetPort: 6443}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
`

func TestBuild(t *testing.T) {
	o := load(t, shop)
	opt := Options{Node: "n1", TrustDomain: "cluster.local", LocalAddrs: map[manifest.Name][]netip.Addr{
		{Namespace: "shop", Name: "web-1"}: {netip.MustParseAddr("10.0.0.7")},
	}}
	got := Build(o, opt)
	services := map[string]string{}
	for _, s := range got.Services {
		b, _ := json.Marshal(s)
		services[s.Name] = string(b)
	}
	ep := func(addr, uid string) string { return `{"addr":"` + addr + `","workload":"` + uid + `"}` }
	want := map[string]string{
		"web": `{"namespace":"shop","name":"web","addrs":["10.96.0.1"],"ports":[` +
			`{"port":80,"name":"http-main","protocol":"http1","endpoints":[` + ep("10.0.0.7:8080", "u-1") + `,` + ep("10.1.0.2:9090", "shop/web-2") + `]},` +
			`{"port":81,"name":"admin","protocol":"http2","endpoints":[` + ep("10.0.0.7:8081", "u-1") + `,` + ep("10.1.0.2:8081", "shop/web-2") + `]}]}`,
		"headless": `{"namespace":"shop","name":"headless","addrs":[],"ports":[{"port":9090,"protocol":"detect","endpoints":[` +
			ep("10.0.0.7:9090", "u-1") + `,` + ep("10.1.0.2:9090", "shop/web-2") + `,` + ep("[fd00::2]:9090", "shop/web-2") + `]}]}`,
		"host":  `{"namespace":"shop","name":"host","addrs":["10.96.0.2"],"ports":[{"port":443,"protocol":"detect","endpoints":[` + ep("192.0.2.9:6443", "") + `]}]}`,
		"empty": `{"namespace":"shop","name":"empty","addrs":["10.96.0.3"],"ports":[{"port":80,"protocol":"detect","endpoints":[]}]}`,
	}
	if d := cmp.Diff(want, services); d != "" {
		t.Errorf("services (-want +got):\n%s", d)
	}
	var names []string
	for _, w := range got.Workloads {
		names = append(names, w.Namespace+"/"+w.Name)
	}
	wantNames := []string{"elsewhere/web-foreign", "shop/web-1", "shop/web-2", "shop/web-leaving", "shop/web-unready"}
	if d := cmp.Diff(wantNames, names); d != "" {
		t.Errorf("workloads (-want +got):\n%s", d)
	}
	web1 := got.Workloads[1]
	if d := cmp.Diff(mesh.Workload{UID: "u-1", Namespace: "shop", Name: "web-1", ServiceAccount: "web", Node: "n1",
		Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.7")}, Meshed: true, Mode: mesh.Permissive, Down: mesh.DownOpen},
		web1, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("web-1 (-want +got):\n%s", d)
	}
	if got.Workloads[0].Meshed {
		t.Error("a pod whose namespace is not enrolled is meshed")
	}
	again, _ := json.Marshal(Build(o, opt))
	first, _ := json.Marshal(got)
	if string(again) != string(first) {
		t.Error("equal input gave another snapshot")
	}
}

func TestEffectiveSettings(t *testing.T) {
	pod := func(labels, notes string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n, labels: {" + labels + "}, annotations: {" + notes + "}}\n---\n"
	}
	ns := func(labels, notes string) string {
		return "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {" + labels + "}, annotations: {" + notes + "}}\n---\n"
	}
	policy := func(spec string) string {
		return "apiVersion: conduit.io/v1alpha1\nkind: MeshPolicy\nmetadata: {name: default}\nspec: " + spec + "\n---\n"
	}
	const on, off = "conduit.io/mesh: enabled", "conduit.io/mesh: disabled"
	const strict, permissive = "conduit.io/mtls-mode: STRICT", "conduit.io/mtls-mode: PERMISSIVE"
	tests := []struct {
		name, yaml string
		meshed     bool
		mode       mesh.Mode
		down       mesh.Down
	}{
		{"nothing said", pod("", ""), false, mesh.Permissive, mesh.DownOpen},
		{"namespace enrols", ns(on, "") + pod("", ""), true, mesh.Permissive, mesh.DownOpen},
		{"pod enrols", ns("", "") + pod(on, ""), true, mesh.Permissive, mesh.DownOpen},
		{"disabled on the pod wins", ns(on, "") + pod(off, ""), false, mesh.Permissive, mesh.DownOpen},
		{"enabled on the pod wins over a disabled namespace", ns(off, "") + pod(on, ""), true, mesh.Permissive, mesh.DownOpen},
		{"strict closes", pod(on, strict), true, mesh.Strict, mesh.DownClosed},
		{"strict and explicitly open", pod(on, strict+", conduit.io/agent-down: Open"), true, mesh.Strict, mesh.DownOpen},
		{"permissive and explicitly closed", ns(on, "conduit.io/agent-down: Closed") + pod("", ""), true, mesh.Permissive, mesh.DownClosed},
		{"namespace over policy", policy("{mtls: {mode: STRICT}}") + ns(on, permissive) + pod("", ""), true, mesh.Permissive, mesh.DownOpen},
		{"pod over namespace", ns(on, permissive) + pod("", strict), true, mesh.Strict, mesh.DownClosed},
		{"policy", policy("{mtls: {mode: STRICT}, agentDown: Open}") + pod(on, ""), true, mesh.Strict, mesh.DownOpen},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := load(t, tt.yaml)
			w := Workload(o, o.Pods[manifest.Name{Namespace: "n", Name: "p"}], "n1")
			if w.Meshed != tt.meshed || w.Mode != tt.mode || w.Down != tt.down {
				t.Errorf("meshed %v, mode %s, down %s; want %v, %s, %s", w.Meshed, w.Mode, w.Down, tt.meshed, tt.mode, tt.down)
			}
		})
	}
}

func TestVersionsGrow(t *testing.T) {
	now := time.Now()
	a := NextVersion(0, now)
	if b := NextVersion(a, now); b <= a {
		t.Errorf("second version %d after %d", b, a)
	}
	if b := NextVersion(a, now.Add(-time.Hour)); b <= a {
		t.Errorf("version %d after %d when the clock went back", b, a)
	}
	if b := NextVersion(0, now.Add(time.Second)); b <= a {
		t.Errorf("a later process starts with %d after %d", b, a)
	}
}
