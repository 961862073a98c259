package identity

import (
	"context"
	"errors"
	"sync"
	"time"

	"conduit.io/conduit/mesh"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// Pods is what the controller's cache knows. It must be safe for concurrent use.
type Pods interface {
	// Runs reports whether a pod of the service account is bound to the node and has not ended.
	Runs(node, namespace, serviceAccount string) bool
}

const (
	// lookupsPerSecond bounds the questions to the API server about pods that the cache does not know, of one node:
	// it starts as many at once as a full one has identities.
	lookupsPerSecond = 5
	lookupsAtOnce    = 128
	// signsPerSecond bounds the certificates of one node.
	signsPerSecond = 20
	signsAtOnce    = 512
	lookupTimeout  = 5 * time.Second
)

var (
	errNotOnNode = errors.New("no pod of this identity runs on the caller's node")
	errThrottled = errors.New("the node asks for more than it may at once")
	errLookup    = errors.New("the API server could not be asked for the identity's pods")
)

// lookups finds out who runs where.
type lookups struct {
	api  corev1client.PodsGetter
	pods Pods
	now  func() time.Time

	mu    sync.Mutex
	nodes map[string]*allowance // of callers: as many as the cluster has nodes
}

// allowance is what one node may still do.
type allowance struct {
	lookups, signs *rate.Limiter
	used           time.Time
}

func newLookups(api corev1client.PodsGetter, pods Pods, now func() time.Time) *lookups {
	return &lookups{api: api, pods: pods, now: now, nodes: map[string]*allowance{}}
}

// of is the node's allowance. Those that have long been full again are forgotten.
func (l *lookups) of(node string) *allowance {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	a := l.nodes[node]
	if a == nil {
		for n, old := range l.nodes {
			if now.Sub(old.used) > time.Hour {
				delete(l.nodes, n)
			}
		}
		a = &allowance{lookups: rate.NewLimiter(lookupsPerSecond, lookupsAtOnce), signs: rate.NewLimiter(signsPerSecond, signsAtOnce)}
		l.nodes[node] = a
	}
	a.used = now
	return a
}

// maySign takes one signature off the node's allowance.
func (l *lookups) maySign(node string) error {
	if !l.of(node).signs.AllowN(l.now(), 1) {
		return errThrottled
	}
	return nil
}

// runs returns nil if a pod of id is bound to the node now. What the cache does not know is looked up: the pod may be
// younger than the cache's view.
func (l *lookups) runs(ctx context.Context, node string, id mesh.Identity) error {
	if l.pods != nil && l.pods.Runs(node, id.Namespace, id.ServiceAccount) {
		return nil
	}
	if !l.of(node).lookups.AllowN(l.now(), 1) {
		return errThrottled
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	list, err := l.api.Pods(id.Namespace).List(ctx, metav1.ListOptions{FieldSelector: fields.AndSelectors(
		fields.OneTermEqualSelector("spec.nodeName", node),
		fields.OneTermEqualSelector("spec.serviceAccountName", id.ServiceAccount),
	).String()})
	if err != nil {
		return errLookup
	}
	for i := range list.Items {
		if phase := list.Items[i].Status.Phase; phase != corev1.PodSucceeded && phase != corev1.PodFailed {
			return nil
		}
	}
	return errNotOnNode
}
