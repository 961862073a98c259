package labels

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/control/discovery"
	"conduit.io/conduit/tests/apiserver"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// TestTold: what is misspelt is told once where people look, by one leader after the other, and no more of it than people can read.
func TestTold(t *testing.T) {
	client := kubernetes.NewForConfigOrDie(apiserver.Start(t).Config)
	x := discovery.New()
	see := func(o any) {
		t.Helper()
		r, err := discovery.Strip(o)
		if err != nil {
			t.Fatal(err)
		}
		x.Put(r)
	}
	for ns, value := range map[string]string{"shop": "enable", "bank": kube.Enabled} {
		made, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{kube.LabelMesh: value}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		see(made)
	}
	yes := true
	pod := func(name, owner, mode string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "bank", UID: "uid-of-the-pod", Annotations: map[string]string{kube.AnnotationMode: mode}}}
		if owner != "" {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "StatefulSet", Name: owner, Controller: &yes}}
		}
		return p
	}
	for i := range 10 {
		see(pod(fmt.Sprint("db-", i), "db", "Strict"))
	}
	see(pod("good", "", "STRICT"))
	see(pod(strings.Repeat("long", 60), "", "permissive"))

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { New(client.CoreV1(), x, slog.New(slog.DiscardHandler)).Run(ctx); close(done) }()
	events := func(ns string) []corev1.Event {
		list, err := client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(); <-time.After(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not in time: %s: %v", what, events("bank"))
			}
		}
	}
	eventually("the namespace is told of", func() bool { return len(events("shop")) == 1 })
	e := events("shop")[0]
	if on := e.InvolvedObject; on.Kind != "Namespace" || on.Name != "shop" || e.Type != corev1.EventTypeWarning || e.Reason != Reason ||
		!strings.Contains(e.Message, `"enable" is neither enabled nor disabled, did you mean enabled?`) {
		t.Errorf("%+v", e)
	}
	eventually("three of ten alike, and the one by itself", func() bool { return len(events("bank")) == perOwner+1 })
	see(pod("late", "", "closed")) // while it runs
	eventually("another one", func() bool { return len(events("bank")) == perOwner+2 })
	cancel()
	<-done

	New(client.CoreV1(), x, slog.New(slog.DiscardHandler)).tell(t.Context()) // the next leader
	if n := len(events("bank")) + len(events("shop")); n != perOwner+3 {
		t.Errorf("%d Events after another leader, want %d", n, perOwner+3)
	}
	for i := range 100 {
		see(pod(fmt.Sprint("flood-", i), "", fmt.Sprint(i)))
	}
	New(client.CoreV1(), x, slog.New(slog.DiscardHandler)).tell(t.Context())
	if n := len(events("bank")); n > perNamespace+perOwner+2 {
		t.Errorf("%d Events in one namespace", n)
	}
	// What was put right is not told of any more.
	see(pod("late", "", "STRICT"))
	for _, m := range x.Misspelt() {
		if m.Name.Name == "late" {
			t.Errorf("%+v", m)
		}
	}
}
