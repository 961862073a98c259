// Package kube reads from the API server what an agent must know of the pods of its own node: these Pods, the Namespaces,
// and the MeshPolicy.
package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/api/v1alpha1"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// findTimeout bounds one question about one pod.
const findTimeout = 5 * time.Second

// Source holds what the API server says. It is safe for concurrent use.
type Source struct {
	node string
	log  *slog.Logger
	core rest.Interface

	pods, namespaces, policies *watched
	dirty                      chan struct{}

	mu      sync.Mutex
	current *manifest.Objects
	gen     uint64
	whole   bool              // everything was read at least once
	faults  map[string]string // by resource
}

// Open makes a Source for the pods of node; Watch reads. The API server need not be there yet.
func Open(cfg *rest.Config, node string, log *slog.Logger) (*Source, error) {
	c, err := connect(cfg)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	s := &Source{
		node: node, log: log, core: c.core, dirty: make(chan struct{}, 1), faults: map[string]string{},
		current: &manifest.Objects{},
	}
	s.pods = s.watch(c.core, "pods", &corev1.Pod{}, "spec.nodeName="+node)
	s.namespaces = s.watch(c.core, "namespaces", &corev1.Namespace{}, "")
	s.policies = s.watch(c.conduit, "meshpolicies", &meshPolicy{}, "metadata.name="+v1alpha1.MeshPolicyName)
	return s, nil
}

// Watch reads, and calls changed after every change, until ctx ends.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, w := range []*watched{s.pods, s.namespaces, s.policies} {
		wg.Go(func() { w.controller.RunWithContext(ctx) })
		wg.Go(func() {
			if cache.WaitForCacheSync(ctx.Done(), w.controller.HasSynced) {
				s.mark()
			}
		})
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.dirty:
		}
		if s.collect() {
			changed()
		}
	}
}

// mark has Watch collect what has changed.
func (s *Source) mark() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// collect puts in force what is known now. Before everything was read once, nothing is: a pod whose MeshPolicy is not
// known yet would be taken for one that accepts plaintext.
func (s *Source) collect() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pods.controller.HasSynced() || !s.namespaces.controller.HasSynced() || !s.policies.synced() {
		return false
	}
	o := &manifest.Objects{Namespaces: map[string]*corev1.Namespace{}, Pods: map[manifest.Name]*corev1.Pod{}}
	for _, v := range s.namespaces.store.List() {
		ns := v.(*corev1.Namespace)
		o.Namespaces[ns.Name] = ns
	}
	for _, v := range s.pods.store.List() {
		p := v.(*corev1.Pod)
		o.Pods[manifest.Name{Namespace: p.Namespace, Name: p.Name}] = p
	}
	for _, v := range s.policies.store.List() {
		o.Policy = &v.(*meshPolicy).MeshPolicy
	}
	if !s.whole {
		s.whole = true
		s.log.Info("API server read", "pods", len(o.Pods), "namespaces", len(o.Namespaces), "policy", o.Policy != nil)
	}
	s.current = o
	s.gen++
	return true
}

// Objects is what is in force, and its generation, which grows when it changes. It has no Services.
func (s *Source) Objects() (*manifest.Objects, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.gen
}

// Find asks the API server for a pod, and for its Namespace: the runtime may start a pod before the watch tells of it.
func (s *Source) Find(ctx context.Context, name manifest.Name) bool {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), s.pods.controller.HasSynced, s.namespaces.controller.HasSynced, s.policies.synced) {
		return false
	}
	var pod corev1.Pod
	err := s.core.Get().Namespace(name.Namespace).Resource("pods").Name(name.Name).Do(ctx).Into(&pod)
	if err == nil && pod.Spec.NodeName == s.node {
		s.pods.admit(&pod)
	}
	for _, err := range []error{err, s.findNamespace(ctx, name.Namespace)} {
		if err != nil && !apierrors.IsNotFound(err) {
			s.log.Warn("API server did not tell of a pod", "pod", name.String(), "error", err)
		}
	}
	return s.collect()
}

// findNamespace asks for a Namespace, unless it is known.
func (s *Source) findNamespace(ctx context.Context, name string) error {
	if _, known, err := s.namespaces.store.GetByKey(name); err == nil && known {
		return nil
	}
	var ns corev1.Namespace
	err := s.core.Get().Resource("namespaces").Name(name).Do(ctx).Into(&ns)
	if err == nil {
		s.namespaces.admit(&ns)
	}
	return err
}

// Missing says who does not know a pod (noPod), or its Namespace, and what to do about it.
func (s *Source) Missing(pod manifest.Name, noPod, _ bool) (who, hint string) {
	s.mu.Lock()
	whole, faults := s.whole, maps.Clone(s.faults)
	s.mu.Unlock()
	hint = fmt.Sprintf("see 'kubectl get namespace %s'; the runtime tries again", pod.Namespace)
	if noPod {
		hint = fmt.Sprintf("see 'kubectl -n %s get pod %s -o wide'; the runtime tries again", pod.Namespace, pod.Name)
	}
	for resource, text := range faults {
		return fmt.Sprintf("the API server cannot be read (%s: %s)", resource, text),
			"see whether the node reaches the API server, and what the agent's ServiceAccount may read; the runtime tries again"
	}
	if !whole {
		return "the API server has not been read yet", "the runtime tries again; if it stays so, see the agent's log"
	}
	return "the API server knows of none on node " + s.node, hint
}

// Stale says what to do about a Pod that is not the one which the runtime starts.
func (s *Source) Stale() string {
	return "the pod was deleted and made anew; the runtime tries again with the new one"
}

// Faults is what cannot be read now.
func (s *Source) Faults() []manifest.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []manifest.Fault
	for _, resource := range []string{"pods", "namespaces", "meshpolicies"} {
		if text := s.faults[resource]; text != "" {
			out = append(out, manifest.Fault{File: "API server", Field: resource, Message: text})
		}
	}
	return out
}

// fault notes that a resource cannot be read, or (nil) can be again. A fault is logged when it is new.
func (s *Source) fault(resource string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.mu.Lock()
	old := s.faults[resource]
	if text == "" {
		delete(s.faults, resource)
	} else {
		s.faults[resource] = text
	}
	s.mu.Unlock()
	switch {
	case text != "" && old == "":
		s.log.Warn("API server cannot be read; what it said before stays in force", "resource", resource, "error", err)
	case text == "" && old != "":
		s.log.Info("API server is read again", "resource", resource)
	}
}
