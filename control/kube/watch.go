package kube

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/control/discovery"

	corev1 "k8s.io/api/core/v1"
	discoveryk8s "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Watcher keeps an index up to date with the API server. Objects are reduced to records as they are decoded: the index
// is the only copy.
type Watcher struct {
	log     *slog.Logger
	feeds   []*feed
	synced  atomic.Int32 // feeds that have been read once
	working sync.WaitGroup
}

// feed follows one kind of objects. It is the store of a client-go reflector.
type feed struct {
	kind     discovery.Kind
	x        *discovery.Index
	lw       cache.ListerWatcher
	object   runtime.Object
	optional bool // the kind may be unknown to the API server
	first    sync.Once
	done     func()
	failures atomic.Uint64
}

// Watch begins to feed x, and goes on until ctx ends. Wait returns when it has ended.
func Watch(ctx context.Context, cfg *rest.Config, x *discovery.Index, log *slog.Logger) (*Watcher, error) {
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("reach the Kubernetes API server: %w", err)
	}
	own, err := ownClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("reach the Kubernetes API server: %w", err)
	}
	w := &Watcher{log: log}
	all := func(c cache.Getter, k discovery.Kind) cache.ListerWatcher {
		return cache.NewListWatchFromClient(c, string(k), metav1.NamespaceAll, fields.Everything())
	}
	core := client.CoreV1().RESTClient()
	w.feeds = []*feed{ // what others refer to comes first
		{kind: discovery.Nodes, lw: all(core, discovery.Nodes), object: &corev1.Node{}},
		{kind: discovery.Namespaces, lw: all(core, discovery.Namespaces), object: &corev1.Namespace{}},
		{kind: discovery.Policies, lw: all(own, discovery.Policies), object: &v1alpha1.MeshPolicy{}, optional: true},
		{kind: discovery.Pods, lw: all(core, discovery.Pods), object: &corev1.Pod{}},
		{kind: discovery.Services, lw: all(core, discovery.Services), object: &corev1.Service{}},
		{kind: discovery.Slices, lw: all(client.DiscoveryV1().RESTClient(), discovery.Slices), object: &discoveryk8s.EndpointSlice{}},
	}
	for _, f := range w.feeds {
		f.x, f.done = x, func() { w.synced.Add(1) }
		w.working.Go(func() { w.follow(ctx, f) })
	}
	return w, nil
}

// ownClient speaks of Conduit's own kinds, which have no protobuf.
func ownClient(cfg *rest.Config) (rest.Interface, error) {
	gv := schema.GroupVersion{Group: v1alpha1.Group, Version: v1alpha1.Version}
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(gv, &v1alpha1.MeshPolicy{}, &v1alpha1.MeshPolicyList{})
	metav1.AddToGroupVersion(scheme, gv)
	own := rest.CopyConfig(cfg)
	own.GroupVersion, own.APIPath, own.NegotiatedSerializer = &gv, "/apis", serializer.NewCodecFactory(scheme).WithoutConversion()
	own.ContentType, own.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	return rest.RESTClientFor(own)
}

// Synced reports whether every kind has been read once.
func (w *Watcher) Synced() bool { return int(w.synced.Load()) == len(w.feeds) }

// Wait returns when all watches have ended.
func (w *Watcher) Wait() { w.working.Wait() }

// Write writes the watcher's metrics in the Prometheus text exposition format.
func (w *Watcher) Write(out io.Writer) {
	const failed, synced = "conduit_kube_watch_failures_total", "conduit_kube_synced"
	fmt.Fprintf(out, "# HELP %s Lists and watches that ended with an error, by resource.\n# TYPE %s counter\n", failed, failed)
	for _, f := range w.feeds {
		fmt.Fprintf(out, "%s{resource=%q} %d\n", failed, f.kind, f.failures.Load())
	}
	value := 0
	if w.Synced() {
		value = 1
	}
	fmt.Fprintf(out, "# HELP %s 1 when everything has been read once.\n# TYPE %s gauge\n%s %d\n", synced, synced, synced, value)
}

// The pauses after failures: each twice the one before, give or take a half.
const (
	minPause = 200 * time.Millisecond
	maxPause = 10 * time.Second
)

// absentPause is how often to look whether an optional kind is known by now.
const absentPause = 30 * time.Second

// follow lists and watches until ctx ends.
func (w *Watcher) follow(ctx context.Context, f *feed) {
	pause := minPause
	for ctx.Err() == nil {
		began := time.Now()
		r := cache.NewReflectorWithOptions(f.lw, f.object, f, cache.ReflectorOptions{Name: "conduit " + string(f.kind)})
		err := r.ListAndWatchWithContext(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil, time.Since(began) > maxPause:
			pause = minPause
		}
		wait := pause/2 + rand.N(pause)
		if err != nil {
			f.failures.Add(1)
			if f.optional && apierrors.IsNotFound(err) {
				_ = f.Replace(nil, "")
				wait = absentPause
			} else {
				w.log.Warn("watch of the API server failed", "resource", string(f.kind), "error", err.Error())
				pause = min(2*pause, maxPause)
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// Add is cache.ReflectorStore's.
func (f *feed) Add(object any) error { return f.Update(object) }

// Update is cache.ReflectorStore's.
func (f *feed) Update(object any) error {
	r, err := discovery.Strip(object)
	if err == nil {
		f.x.Put(r)
	}
	return err
}

// Delete is cache.ReflectorStore's.
func (f *feed) Delete(object any) error {
	r, err := discovery.Strip(object)
	if err == nil {
		f.x.Remove(f.kind, r.Named())
	}
	return err
}

// Replace is cache.ReflectorStore's.
func (f *feed) Replace(objects []any, _ string) error {
	records := make([]discovery.Record, 0, len(objects))
	for i, o := range objects {
		r, err := discovery.Strip(o)
		if err != nil {
			return err
		}
		records = append(records, r)
		objects[i] = nil // the object may go at once
	}
	f.x.Replace(f.kind, records)
	f.first.Do(f.done)
	return nil
}

// Resync is cache.ReflectorStore's.
func (f *feed) Resync() error { return nil }

// Transformer is cache.TransformingStore's: objects are stripped while the list is still coming.
func (f *feed) Transformer() cache.TransformFunc {
	return func(object any) (any, error) { return discovery.Strip(object) }
}
