package identity

import (
	"context"
	"net/http/httptest"
	"testing"
	"time"

	identityv1 "conduit.io/conduit/api/identityv1"
	"conduit.io/conduit/api/identityv1/identityv1connect"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestDrain: streams end by themselves, in order, when the replica is about to end.
func TestDrain(t *testing.T) {
	draining := make(chan struct{})
	client := must[*kubernetes.Clientset](t)(kubernetes.NewForConfig(&rest.Config{Host: "127.0.0.1:1"})) // nobody is asked
	s := must[*Service](t)(New(Config{Client: client, Draining: draining, DrainTime: 50 * time.Millisecond}))
	_, h := identityv1connect.NewIdentityServiceHandler(s)
	server := httptest.NewUnstartedServer(h)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const streams = 5
	ended := make(chan error, streams)
	for range streams {
		go func() {
			stream, err := identityv1connect.NewIdentityServiceClient(server.Client(), server.URL).WatchRoots(ctx, &identityv1.WatchRootsRequest{})
			if err == nil {
				for stream.Receive() {
				}
				err = stream.Err()
				stream.Close()
			}
			ended <- err
		}()
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.counts.watchers.Load() < streams && ctx.Err() == nil {
		<-tick.C
	}
	if len(ended) > 0 {
		t.Error("a stream has ended before its time")
	}
	close(draining)
	for range streams {
		if err := <-ended; err != nil {
			t.Errorf("a stream did not end in order: %v", err)
		}
	}
}
