package manifest

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var quietLog = slog.New(slog.DiscardHandler)

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	tmp := filepath.Join(dir, "."+name)
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *Source {
	t.Helper()
	s, err := Open(dir, quietLog)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func faults(s *Source) string {
	var lines []string
	for _, f := range s.Faults() {
		f.File = filepath.Base(f.File)
		lines = append(lines, f.String())
	}
	return strings.Join(lines, "\n")
}

const podHead = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n"

var badFiles = []struct{ name, content, want string }{
	{"unknown field", podHead + "spec:\n  containers:\n  - name: a\n    imag: x\n",
		`f.yaml:9: spec.containers[0].imag: unknown field; did you mean "image"?`},
	{"wrong case", podHead + "spec:\n  NodeName: n1\n", `f.yaml:7: spec.NodeName: unknown field; did you mean "nodeName"?`},
	{"wrong type", podHead + "spec:\n  containers: yes\n", `f.yaml:7: spec.containers: want a list, got "yes"`},
	{"number for text", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    build: 12\n",
		`f.yaml:6: metadata.labels.build: want a string, got 12; put it in quotes`},
	{"boolean annotation", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  annotations:\n    a.b/c: true\n",
		`f.yaml:6: metadata.annotations["a.b/c"]: want a string, got true; put it in quotes`},
	{"bad quantity", podHead + "spec:\n  containers:\n  - name: a\n    resources:\n      limits:\n        memory: 1x1\n",
		`f.yaml:11: spec.containers[0].resources.limits.memory: "1x1" is not valid here: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'`},
	{"bad time", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  deletionTimestamp: soon\n",
		`f.yaml:5: metadata.deletionTimestamp: "soon" is not valid here: parsing time "soon" as "2006-01-02T15:04:05Z07:00": cannot parse "soon" as "2006"`},
	{"duplicate key", podHead + "spec:\n  nodeName: a\n  nodeName: b\n",
		`f.yaml:8: spec.nodeName: the field is there twice (first in line 7)`},
	{"unknown kind", "apiVersion: v1\nkind: Podd\nmetadata:\n  name: web\n", `f.yaml:2: kind: v1 Podd is not supported; ` + supported},
	{"policy of a later version", "apiVersion: conduit.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: web\n",
		`f.yaml:2: kind: conduit.io/v1alpha1 AuthorizationPolicy is not supported; ` + supported},
	{"route", "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: web\n",
		`f.yaml:2: kind: gateway.networking.k8s.io/v1 HTTPRoute is not supported; ` + supported},
	{"policy in a misspelt group", "apiVersion: conduit.oi/v1alpha1\nkind: MeshPolicy\nmetadata:\n  name: default\n",
		`f.yaml:2: kind: conduit.oi/v1alpha1 MeshPolicy is not supported; ` + supported},
	{"no kind", "metadata:\n  name: web\n", `f.yaml:1: the object has no apiVersion or no kind; ` + supported},
	{"no name", "apiVersion: v1\nkind: Pod\nmetadata: {}\n", `f.yaml:3: metadata.name: is required`},
	{"bad namespace name", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: Shop\n",
		`f.yaml:4: metadata.name: "Shop": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`},
	{"bad label value", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels:\n    conduit.io/mesh: on\n",
		`f.yaml:6: metadata.labels["conduit.io/mesh"]: want enabled or disabled, got "on"`},
	{"bad mode", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations:\n    conduit.io/mtls-mode: strict\n",
		`f.yaml:6: metadata.annotations["conduit.io/mtls-mode"]: want PERMISSIVE or STRICT, got "strict"`},
	{"misspelt annotation", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations:\n    conduit.io/mtls: STRICT\n",
		`f.yaml:6: metadata.annotations["conduit.io/mtls"]: Conduit knows no such name here; it knows conduit.io/mtls-mode and conduit.io/agent-down`},
	{"bad pod IP", podHead + "status:\n  podIP: 10.0.0.300\n", `f.yaml:7: status.podIP: "10.0.0.300" is no IP address`},
	{"loopback pod IP", podHead + "status:\n  podIPs:\n  - ip: 127.0.0.1\n",
		`f.yaml:8: status.podIPs[0].ip: "127.0.0.1" is no address that a pod or Service can have`},
	{"bad affinity", "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  sessionAffinity: Client\n  internalTrafficPolicy: local\n",
		"f.yaml:6: spec.sessionAffinity: want None or ClientIP, got \"Client\"\nf.yaml:7: spec.internalTrafficPolicy: want Cluster or Local, got \"local\""},
	{"bad timeout", "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  sessionAffinity: ClientIP\n  sessionAffinityConfig:\n    clientIP:\n      timeoutSeconds: -1\n",
		"f.yaml:9: spec.sessionAffinityConfig.clientIP.timeoutSeconds: want 1 to 86400, got -1"},
	{"bad external address", "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  externalIPs:\n  - 10.0.0\n",
		`f.yaml:7: spec.externalIPs[0]: "10.0.0" is no IP address`},
	{"bad port", "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: 70000\n",
		`f.yaml:7: spec.ports[0].port: want a port from 1 to 65535, got 70000`},
	{"bad target port", "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: 80\n    targetPort: a_b\n",
		`f.yaml:8: spec.ports[0].targetPort: "a_b": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)`},
	{"unnamed ports", "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: 80\n    name: a\n  - port: 81\n",
		`f.yaml:9: spec.ports[1].name: is required in a Service with several ports`},
	{"bad cluster IP", "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: none\n",
		`f.yaml:6: spec.clusterIP: "none" is no IP address`},
	{"mesh policy name", "apiVersion: conduit.io/v1alpha1\nkind: MeshPolicy\nmetadata:\n  name: mine\nspec: {}\n",
		`f.yaml:4: metadata.name: the one MeshPolicy is called "default", not "mine"`},
	{"mesh policy mode", "apiVersion: conduit.io/v1alpha1\nkind: MeshPolicy\nmetadata:\n  name: default\nspec:\n  mtls:\n    mode: ON\n  agentDown: Maybe\n",
		"f.yaml:7: spec.mtls.mode: want PERMISSIVE or STRICT, got \"ON\"\nf.yaml:8: spec.agentDown: want Closed or Open, got \"Maybe\""},
	{"syntax", podHead + "spec:\n  a: [1, 2\n", `f.yaml:7: not valid YAML: did not find expected ',' or ']'`},
	{"tab", "apiVersion: v1\nkind: Pod\n\tname: x\n", `f.yaml:3: not valid YAML: found a tab character that violates indentation`},
	{"not an object", "- a\n- b\n", `f.yaml:1: want a Kubernetes object, got a list`},
	{"second document", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  nam: b\n",
		"f.yaml:9: metadata.nam: unknown field; did you mean \"name\"?"},
	{"twice in one file", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n",
		"f.yaml:6: Namespace a is there twice (first in line 1)"},
	{"item of a list", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spek: {}\n",
		`f.yaml:7: items[0].spek: unknown field`},
}

func TestBadFiles(t *testing.T) {
	for _, tt := range badFiles {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, "f.yaml", tt.content)
			s := open(t, dir)
			if got := faults(s); got != tt.want {
				t.Errorf("faults:\n%s\nwant:\n%s", got, tt.want)
			}
			if o, _ := s.Objects(); len(o.Pods)+len(o.Namespaces)+len(o.Services) != 0 || o.Policy != nil {
				t.Errorf("a bad file put objects in force: %+v", o)
			}
		})
	}
}

func TestGoodFiles(t *testing.T) {
	dir := t.TempDir()
	real, err := os.ReadFile("testdata/kubectl-get-pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "a.yaml", "# nothing but a comment\n---\n---\n"+podHead+"---\napiVersion: v1\nkind: Namespace\nmetadata: &m\n  name: shop\n---\n")
	put(t, dir, "b.yml", "apiVersion: conduit.io/v1alpha1\nkind: MeshPolicy\nmetadata:\n  name: default\nspec:\n  mtls:\n    mode: STRICT\n")
	put(t, dir, "c.json", "{\n\t\"apiVersion\": \"v1\", \"kind\": \"Service\",\n\t\"metadata\": {\"name\": \"web\"}, \"spec\": {\"ports\": [{\"port\": 80, \"targetPort\": \"http\"}]}}\n")
	put(t, dir, "real.yaml", string(real))
	put(t, dir, "notes.txt", "not a manifest")
	s := open(t, dir)
	if got := faults(s); got != "" {
		t.Fatalf("faults:\n%s", got)
	}
	o, _ := s.Objects()
	if len(o.Pods) != 2 || len(o.Namespaces) != 1 || len(o.Services) != 1 || o.Policy == nil {
		t.Fatalf("objects: %d pods, %d namespaces, %d services, policy %v", len(o.Pods), len(o.Namespaces), len(o.Services), o.Policy)
	}
	if svc := o.Services[Name{"default", "web"}]; svc == nil || svc.Spec.Ports[0].TargetPort.StrVal != "http" {
		t.Errorf("service without a namespace, named target port: %+v", svc)
	}
	if p := o.Pods[Name{"kube-system", "coredns-76f75df574-abcde"}]; p == nil || p.Status.PodIP != "10.244.0.2" ||
		p.Spec.Containers[0].Resources.Limits.Memory().Value() != 170<<20 {
		t.Errorf("pod as kubectl prints it: %+v", p)
	}
}

// An application's manifests have more in them than a mesh reads.
func TestForeignObjectsAreLeftOut(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "list.yaml", `apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {replicas: 1}}
- {apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: web, namespace: shop}}
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}}
`)
	put(t, dir, "docs.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: b}\n---\n"+
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\naddressType: IPv4\nendpoints: []\n---\n"+
		"apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n")
	s := open(t, dir)
	if got := faults(s); got != "" {
		t.Fatalf("faults:\n%s", got)
	}
	if o, _ := s.Objects(); len(o.Pods) != 1 || len(o.Namespaces) != 1 || len(o.Services) != 1 {
		t.Errorf("objects: %d pods, %d namespaces, %d services, want one of each", len(o.Pods), len(o.Namespaces), len(o.Services))
	}
}

func TestLastGoodStaysInForce(t *testing.T) {
	dir := t.TempDir()
	ns := func(name string) string { return "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: " + name + "\n" }
	put(t, dir, "a.yaml", ns("a"))
	put(t, dir, "b.yaml", ns("b"))
	s := open(t, dir)
	put(t, dir, "a.yaml", ns("A"))
	put(t, dir, "b.yaml", ns("b2"))
	if !s.Scan() {
		t.Fatal("Scan saw no change")
	}
	o, gen := s.Objects()
	if o.Namespaces["a"] == nil || o.Namespaces["b2"] == nil || len(o.Namespaces) != 2 {
		t.Errorf("in force: %v, want a (last good) and b2 (new)", o.Namespaces)
	}
	if s.Scan() {
		t.Error("Scan reports a change where there is none")
	}
	if _, g := s.Objects(); g != gen {
		t.Error("the generation moved without a change")
	}
	put(t, dir, "a.yaml", ns("a3"))
	os.Remove(filepath.Join(dir, "b.yaml"))
	s.Scan()
	if o, _ := s.Objects(); o.Namespaces["a3"] == nil || len(o.Namespaces) != 1 || len(s.Faults()) != 0 {
		t.Errorf("after repair and deletion: %v, faults %v", o.Namespaces, s.Faults())
	}
	os.Rename(dir, dir+".away")
	defer os.RemoveAll(dir + ".away")
	if s.Scan() {
		t.Error("a directory that went away changed the snapshot")
	}
	if o, _ := s.Objects(); o.Namespaces["a3"] == nil || len(s.Faults()) != 1 {
		t.Errorf("directory gone: %v, faults %v", o.Namespaces, s.Faults())
	}
}

func TestOneObjectInTwoFiles(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "b.yaml", podHead)
	s := open(t, dir)
	put(t, dir, "a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n---\n"+podHead)
	s.Scan()
	want := "a.yaml:6: Pod shop/web is defined in " + filepath.Join(dir, "b.yaml") + ":1 already; remove one of the two"
	if got := faults(s); got != want {
		t.Errorf("faults %q, want %q", got, want)
	}
	if o, _ := s.Objects(); len(o.Pods) != 1 || o.Namespaces["x"] != nil {
		t.Errorf("the clashing file is in force: %+v", o)
	}
	os.Remove(filepath.Join(dir, "b.yaml"))
	s.Scan()
	if o, _ := s.Objects(); len(o.Pods) != 1 || o.Namespaces["x"] == nil || len(s.Faults()) != 0 {
		t.Errorf("after the other file went: %+v, faults %v", o, s.Faults())
	}
	// Moved from one file to another in one step: both are good.
	put(t, dir, "a.yaml", "")
	put(t, dir, "c.yaml", podHead)
	s.Scan()
	if o, _ := s.Objects(); len(o.Pods) != 1 || len(s.Faults()) != 0 {
		t.Errorf("after a move: %+v, faults %v", o, s.Faults())
	}
}

func TestNamespaceIsNotRemovedUnderItsPods(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n")
	put(t, dir, "pod.yaml", podHead)
	s := open(t, dir)
	os.Remove(filepath.Join(dir, "ns.yaml"))
	s.Scan()
	if o, _ := s.Objects(); o.Namespaces["shop"] == nil {
		t.Error("the namespace is gone")
	}
	if got := faults(s); !strings.Contains(got, "Namespace shop was removed, but Pod shop/web is still in it") {
		t.Errorf("faults %q", got)
	}
	os.Remove(filepath.Join(dir, "pod.yaml"))
	s.Scan()
	if o, _ := s.Objects(); o.Namespaces["shop"] != nil || len(s.Faults()) != 0 {
		t.Errorf("after its last pod: %v, faults %v", o.Namespaces, s.Faults())
	}
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	changes := make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, func() { changes <- struct{}{} }) }()
	put(t, dir, "a.yaml", podHead)
	for {
		select {
		case <-changes:
		case <-time.After(5 * time.Second):
			t.Fatal("no change was seen")
		}
		if o, _ := s.Objects(); len(o.Pods) == 1 {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestMissingDirectoryIsAnError(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none"), quietLog); err == nil || !strings.Contains(err.Error(), "make the directory") {
		t.Fatalf("Open: %v", err)
	}
}

func TestAliasesDoNotExplode(t *testing.T) {
	dir := t.TempDir()
	doc := podHead + "  annotations:\n    a: &a0 x\nspec:\n  containers:\n  - &c0 {name: a, args: [" + strings.Repeat("x, ", 1000) + "x]}\n" + strings.Repeat("  - *c0\n", 1000)
	put(t, dir, "f.yaml", doc)
	s := open(t, dir)
	if got := faults(s); !strings.Contains(got, "more than 200000 values") {
		t.Errorf("faults %q", got)
	}
}
