package enrol

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/agent/podnet"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/api/podapi"
	"conduit.io/conduit/mesh"
)

const described = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {conduit.io/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u-1}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop}
spec: {nodeName: n2}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: default}
---
apiVersion: v1
kind: Pod
metadata: {name: unlabelled, namespace: nowhere}
---
apiVersion: v1
kind: Pod
metadata: {name: labelled, namespace: nowhere, labels: {conduit.io/mesh: enabled}}
`

func TestPodsMustBeDescribed(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), []byte(described), 0o644); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	source, err := manifest.Open(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	m := New(Config{Node: "n1", Objects: source, Log: log})
	tests := []struct{ pod, uid, says string }{
		{"shop/web", "", ""},
		{"shop/web", "u-1", ""},
		{"shop/web", "u-2", "starts the one with UID u-2"},
		{"shop/far", "", `belongs to node "n2", and this agent is node "n1"`},
		{"shop/none", "", "pod shop/none is unknown"},
		{"none/none", "", `namespace "none" is unknown`},
		{"default/plain", "", ""},
		{"nowhere/unlabelled", "", `namespace "nowhere" of pod nowhere/unlabelled is unknown`},
		{"nowhere/labelled", "", ""},
	}
	for _, tt := range tests {
		ns, name, _ := strings.Cut(tt.pod, "/")
		pod, e := m.describe(t.Context(), &store.Attachment{Namespace: ns, Pod: name, PodUID: tt.uid})
		switch {
		case tt.says == "" && (e != nil || pod == nil || pod.Name != name):
			t.Errorf("%s (%s): %v, %v", tt.pod, tt.uid, pod, e)
		case tt.says != "" && (e == nil || e.Code != podapi.CodeUnknownPod || !strings.Contains(e.Message, tt.says) || e.Hint == ""):
			t.Errorf("%s (%s): %v; want unknown-pod saying %q, with a hint", tt.pod, tt.uid, e, tt.says)
		}
	}
	// A manifest that was written just now is found, and one that is bad is named.
	if err := os.WriteFile(filepath.Join(dir, "late.yaml"), []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: shop}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, e := m.describe(t.Context(), &store.Attachment{Namespace: "shop", Pod: "late"}); e != nil {
		t.Errorf("a manifest written just before: %v", e)
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.yaml"), []byte("kind: [\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, e := m.describe(t.Context(), &store.Attachment{Namespace: "shop", Pod: "other"}); e == nil || !strings.Contains(e.Hint, "bad.yaml:") {
		t.Errorf("a bad manifest is not named: %v", e)
	}
}

func TestKernelFlags(t *testing.T) {
	tests := []struct {
		mode    mesh.Mode
		down    mesh.Down
		out, in bool
	}{
		{mesh.Permissive, mesh.DownOpen, true, true},
		{mesh.Permissive, mesh.DownClosed, false, false},
		{mesh.Strict, mesh.DownOpen, true, false}, // plaintext is never let in where STRICT was asked for
		{mesh.Strict, mesh.DownClosed, false, false},
	}
	for _, tt := range tests {
		got := kernelPod(&pod{workload: mesh.Workload{Mode: tt.mode, Down: tt.down}})
		if got.OutOpen != tt.out || got.InOpen != tt.in {
			t.Errorf("%s, %s: out %v, in %v; want %v, %v", tt.mode, tt.down, got.OutOpen, got.InOpen, tt.out, tt.in)
		}
	}
}

func TestUnwiredRequestsAreChecked(t *testing.T) {
	m := New(Config{Log: slog.New(slog.DiscardHandler)})
	for _, r := range []podapi.Request{
		{ContainerID: "", IfName: "eth0"},
		{ContainerID: "a/b", IfName: "eth0"},
		{ContainerID: ".hidden", IfName: "eth0"},
		{ContainerID: strings.Repeat("c", 300), IfName: "eth0"},
		{ContainerID: "c", IfName: ""},
		{ContainerID: "c", IfName: "name-that-is-too-long"},
		{ContainerID: "c", IfName: ".."},
		{ContainerID: "c", IfName: "eth0"}, // no pod
	} {
		if _, e := m.Add(t.Context(), &r); e == nil || e.Code != podapi.CodeBadRequest {
			t.Errorf("%+v: %v, want bad-request", r, e)
		}
	}
	r := podapi.Request{ContainerID: "c", IfName: "eth0", Namespace: "n", Pod: "p", Netns: "/nonexistent"}
	if _, e := m.Add(t.Context(), &r); e == nil || e.Code != podapi.CodeBadNetns || !strings.Contains(e.Message, podnet.ErrGone.Error()) {
		t.Errorf("missing namespace: %v", e)
	}
}
