package kube

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestClientsDoNotWaitForEachOther: a part of the controller that has used up what it may ask for does not hold up the others, as one
// client for all would.
func TestClientsDoNotWaitForEachOther(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"Lease","apiVersion":"coordination.k8s.io/v1","metadata":{"name":"conduit-controller"}}`))
	}))
	defer server.Close()
	cfg := &rest.Config{Host: server.URL}
	get := func(c *kubernetes.Clientset) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := c.CoordinationV1().Leases("conduit").Get(ctx, "conduit-controller", metav1.GetOptions{})
		return err
	}
	busy, err := Client(cfg, 0.001, 1)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := Client(cfg, 0.001, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := get(busy); err != nil {
		t.Fatal(err)
	}
	if get(busy) == nil {
		t.Fatal("the bound does not hold") // the next would have its turn after a quarter of an hour: that is told at once
	}
	if err := get(lease); err != nil {
		t.Errorf("the other client waits, too: %v", err)
	}
}
