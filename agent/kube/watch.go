package kube

import (
	"context"

	"conduit.io/conduit/api/kube"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// watched is one resource, kept in memory as far as it matters.
type watched struct {
	store      cache.Store
	controller cache.Controller
	absent     chan struct{} // closed when the API server does not know the resource at all
}

// watch prepares a watch. It is for one goroutine at a time that the API server is asked.
func (s *Source) watch(client rest.Interface, resource string, example runtime.Object, selector string) *watched {
	w := &watched{absent: make(chan struct{})}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			list, err := client.Get().Resource(resource).VersionedParams(&o, parameters).Do(ctx).Get()
			s.note(w, resource, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch, o.FieldSelector = true, selector
			stream, err := client.Get().Resource(resource).VersionedParams(&o, parameters).Watch(ctx)
			s.note(w, resource, err)
			return stream, err
		},
	}
	w.store, w.controller = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: lw, ObjectType: example, Transform: strip,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { s.mark() },
			UpdateFunc: func(was, is any) {
				if !alike(was, is) {
					s.mark()
				}
			},
			DeleteFunc: func(any) { s.mark() },
		},
	})
	return w
}

// note takes down how a request for a resource went.
func (s *Source) note(w *watched, resource string, err error) {
	switch {
	case w.noteAbsence(err):
		s.mark()
	case !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err): // then all is read anew
		s.fault(resource, err)
	}
}

// noteAbsence takes a first answer that there is no such resource for an empty list: a cluster without the definition of
// MeshPolicy has none. Only a first answer counts: the definition of a policy in force may be replaced.
func (w *watched) noteAbsence(err error) bool {
	if !apierrors.IsNotFound(err) || w.controller.HasSynced() {
		return false
	}
	select {
	case <-w.absent:
	default:
		close(w.absent)
	}
	return true
}

// synced reports whether the resource was read, or is known to be none.
func (w *watched) synced() bool {
	select {
	case <-w.absent:
		return true
	default:
		return w.controller.HasSynced()
	}
}

// admit takes in an object of which the watch has not told yet. If it has told of its end meanwhile, the object stays
// until the next list; its network namespace is gone by then, which is what counts.
func (w *watched) admit(o runtime.Object) {
	if _, exists, err := w.store.Get(o); err != nil || exists {
		return
	}
	if kept, err := strip(o); err == nil {
		_ = w.store.Add(kept) // it has a name: that is all an error could be about
	}
}

// strip keeps what the agent reads: objects of a cluster are large, and many.
func strip(v any) (any, error) {
	switch o := v.(type) {
	case *corev1.Pod:
		return &corev1.Pod{
			ObjectMeta: meta(&o.ObjectMeta),
			Spec: corev1.PodSpec{
				NodeName: o.Spec.NodeName, ServiceAccountName: o.Spec.ServiceAccountName, HostNetwork: o.Spec.HostNetwork,
				Containers: probed(o.Spec.Containers), InitContainers: probed(o.Spec.InitContainers),
			},
			Status: corev1.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs},
		}, nil
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: meta(&o.ObjectMeta)}, nil
	}
	return v, nil
}

// alike reports whether two versions of a Pod are the same in all that is kept. Most changes of a Pod that starts are of its conditions.
func alike(was, is any) bool {
	a, aok := was.(*corev1.Pod)
	b, bok := is.(*corev1.Pod)
	if !aok || !bok {
		return false
	}
	c := *a
	c.ResourceVersion = b.ResourceVersion
	return equality.Semantic.DeepEqual(&c, b)
}

// probed is what is needed to know at which ports a kubelet dials the containers.
func probed(containers []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for _, c := range containers {
		if c.LivenessProbe == nil && c.ReadinessProbe == nil && c.StartupProbe == nil && c.Lifecycle == nil {
			continue
		}
		kept := corev1.Container{Lifecycle: c.Lifecycle, LivenessProbe: c.LivenessProbe, ReadinessProbe: c.ReadinessProbe, StartupProbe: c.StartupProbe}
		for _, p := range c.Ports {
			if p.Name != "" {
				kept.Ports = append(kept.Ports, p)
			}
		}
		out = append(out, kept)
	}
	return out
}

func meta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	out := metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		DeletionTimestamp: m.DeletionTimestamp,
		Labels:            pick(m.Labels, kube.LabelMesh, "pod-template-hash"),
		Annotations:       pick(m.Annotations, kube.AnnotationMode, kube.AnnotationDown),
	}
	if owner := metav1.GetControllerOf(&metav1.ObjectMeta{OwnerReferences: m.OwnerReferences}); owner != nil {
		out.OwnerReferences = []metav1.OwnerReference{*owner}
	}
	return out
}

func pick(from map[string]string, keys ...string) map[string]string {
	var out map[string]string
	for _, k := range keys {
		if v, ok := from[k]; ok {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

var parameters = runtime.NewParameterCodec(types)
