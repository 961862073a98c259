package kube

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/tests/apiserver"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// rig is a Source that is watching a real API server.
type rig struct {
	*Source
	t       *testing.T
	server  *apiserver.Server
	changes chan struct{}
}

func start(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, server: apiserver.Start(t), changes: make(chan struct{}, 1)}
	r.Source = r.open()
	r.run(r.Source)
	return r
}

func (r *rig) open() *Source {
	r.t.Helper()
	s, err := Open(r.server.Config, "n1", slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) run(s *Source) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error)
	go func() {
		done <- s.Watch(ctx, func() {
			select {
			case r.changes <- struct{}{}:
			default:
			}
		})
	}()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
}

// eventually waits until what is in force is as wanted.
func (r *rig) eventually(what string, ok func(o *manifest.Objects) bool) {
	r.t.Helper()
	deadline := time.After(time.Minute)
	for {
		if o, _ := r.Objects(); ok(o) {
			return
		}
		select {
		case <-r.changes:
		case <-deadline:
			o, gen := r.Objects()
			r.t.Fatalf("%s: generation %d has pods %v, namespaces %v, policy %v; faults %v", what, gen, o.Pods, o.Namespaces, o.Policy, r.Faults())
		}
	}
}

func (r *rig) core() rest.Interface { return r.Source.core }

func (r *rig) namespace(name, mode string) {
	r.t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{kube.LabelMesh: "enabled", "team": "x"},
		Annotations: map[string]string{kube.AnnotationMode: mode}}}
	if err := r.core().Post().Resource("namespaces").Body(ns).Do(r.t.Context()).Error(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) pod(namespace, name, node string) {
	r.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "web", Containers: []corev1.Container{{Name: "c", Image: "i",
			Env: []corev1.EnvVar{{Name: "SECRET", Value: "x"}}}}},
	}
	if err := r.core().Post().Namespace(namespace).Resource("pods").Body(p).Do(r.t.Context()).Error(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) delete(namespace, name string) {
	r.t.Helper()
	grace := int64(0)
	err := r.core().Delete().Namespace(namespace).Resource("pods").Name(name).Body(&metav1.DeleteOptions{GracePeriodSeconds: &grace}).Do(r.t.Context()).Error()
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestSource(t *testing.T) {
	r := start(t)
	r.eventually("namespaces of a new cluster", func(o *manifest.Objects) bool { return o.Namespaces["default"] != nil })
	r.namespace("shop", "STRICT")
	r.pod("shop", "web", "n1")
	r.pod("shop", "far", "n2")
	web, far := manifest.Name{Namespace: "shop", Name: "web"}, manifest.Name{Namespace: "shop", Name: "far"}
	r.eventually("a pod of this node", func(o *manifest.Objects) bool { return o.Pods[web] != nil && o.Namespaces["shop"] != nil })
	o, before := r.Objects()
	p := o.Pods[web]
	if p.UID == "" || p.Spec.ServiceAccountName != "web" || p.Spec.NodeName != "n1" || len(p.Spec.Containers) != 0 || len(p.Labels) != 0 {
		t.Errorf("kept of the pod: %+v", p)
	}
	if ns := o.Namespaces["shop"]; ns.Annotations[kube.AnnotationMode] != "STRICT" || ns.Labels[kube.LabelMesh] != "enabled" || len(ns.Labels) != 1 {
		t.Errorf("kept of the namespace: %+v", ns)
	}
	if o.Pods[far] != nil {
		t.Error("another node's pod is known")
	}
	r.delete("shop", "web")
	r.eventually("a pod that was deleted", func(o *manifest.Objects) bool { return o.Pods[web] == nil })
	if _, after := r.Objects(); after <= before {
		t.Errorf("generation %d after %d", after, before)
	}
	t.Run("policy", func(t *testing.T) { testPolicy(t, r) })
	t.Run("find", func(t *testing.T) { testFind(t, r) })
	t.Run("restart", func(t *testing.T) { testRestart(t, r) })
}

// A policy is followed from the moment at which its kind is known to the API server.
func testPolicy(t *testing.T, r *rig) {
	crd, err := os.ReadFile("../../deploy/crds/meshpolicies.conduit.io.yaml")
	if err != nil {
		t.Fatal(err)
	}
	body, err := yaml.YAMLToJSON(crd)
	if err != nil {
		t.Fatal(err)
	}
	c := r.core()
	post := func(path string, body []byte) error {
		return c.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body(body).Do(t.Context()).Error()
	}
	if err := post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body); err != nil {
		t.Fatal(err)
	}
	policy := []byte(`{"apiVersion":"conduit.io/v1alpha1","kind":"MeshPolicy","metadata":{"name":"default"},"spec":{"mtls":{"mode":"STRICT"}}}`)
	for began := time.Now(); ; { // until the definition is established
		err := post("/apis/conduit.io/v1alpha1/meshpolicies", policy)
		if err == nil {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatal(err)
		}
	}
	r.eventually("the policy", func(o *manifest.Objects) bool { return o.Policy != nil && o.Policy.Spec.MTLS.Mode == "STRICT" })
}

// What the watch has not told yet is asked for. A Source whose watch stands still shows it.
func testFind(t *testing.T, r *rig) {
	still := r.open()
	go still.pods.controller.RunWithContext(t.Context())
	go still.namespaces.controller.RunWithContext(t.Context())
	go still.policies.controller.RunWithContext(t.Context())
	late := manifest.Name{Namespace: "late", Name: "late"}
	ctx := t.Context()
	if still.Find(ctx, late); still.current.Pods[late] != nil {
		t.Fatal("a pod that is not there was found")
	}
	if who, hint := still.Missing(late, true, true); !strings.Contains(who, "node n1") || !strings.Contains(hint, "kubectl -n late get pod late") {
		t.Errorf("%q, %q", who, hint)
	}
	r.namespace("late", "")
	r.pod("late", "late", "n1")
	if !still.Find(ctx, late) {
		t.Error("nothing was found")
	}
	if o, _ := still.Objects(); o.Pods[late] == nil || o.Namespaces["late"] == nil {
		t.Errorf("found %v, %v", o.Pods, o.Namespaces)
	}
	r.pod("late", "elsewhere", "n2")
	elsewhere := manifest.Name{Namespace: "late", Name: "elsewhere"}
	if still.Find(ctx, elsewhere); still.current.Pods[elsewhere] != nil {
		t.Error("another node's pod was taken")
	}
}

// While the API server is away what it said stays in force; when it is back the rest is made up for.
func testRestart(t *testing.T, r *rig) {
	late := manifest.Name{Namespace: "late", Name: "late"}
	r.eventually("the pod", func(o *manifest.Objects) bool { return o.Pods[late] != nil })
	r.server.Down()
	began := time.Now()
	for len(r.Faults()) == 0 {
		if time.Since(began) > time.Minute {
			t.Fatal("no fault is told of")
		}
		r.Find(t.Context(), manifest.Name{Namespace: "late", Name: "none"})
	}
	if o, _ := r.Objects(); o.Pods[late] == nil {
		t.Error("the pod is forgotten")
	}
	if who, _ := r.Missing(manifest.Name{Namespace: "late", Name: "none"}, true, false); !strings.Contains(who, "cannot be read") {
		t.Errorf("%q", who)
	}
	r.server.Up()
	r.pod("late", "after", "n1")
	r.eventually("a pod made after it", func(o *manifest.Objects) bool { return o.Pods[manifest.Name{Namespace: "late", Name: "after"}] != nil })
	r.eventually("no fault", func(*manifest.Objects) bool { return len(r.Faults()) == 0 })
}
