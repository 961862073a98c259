// Package labels tells people of labels and annotations that do not mean what they meant: by a Warning Event on the pod, or in the
// namespace. An API server does not refuse them, and without that nobody would hear of a pod that speaks in the clear.
package labels

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"strings"
	"time"

	"conduit.io/conduit/control/discovery"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// Reason is the Events'.
const Reason = "MisspeltForMesh"

const (
	// again is when what is still misspelt is told once more: API servers keep Events for an hour.
	again = 55 * time.Minute
	// perOwner is how many pods of one workload are told of the same: they have it of one template.
	perOwner = 3
	// perNamespace is of how many objects of a namespace it is told: whoever may label there may label much. `conduit check` names all.
	perNamespace = 20
	// longestName is what of an object's name is in its Event's.
	longestName = 200
	// pause is between two looks, so that many changes make one.
	pause = time.Second
)

// Index knows what is misspelt.
type Index interface {
	Misspelt() []discovery.Misspelt
	Slipped() <-chan struct{}
}

// Teller writes the Events. Only the leader runs one.
type Teller struct {
	api  corev1client.EventsGetter
	x    Index
	log  *slog.Logger
	told map[string]time.Time // by the Event's name
}

// New makes a Teller. How fast it writes, is api's to bound.
func New(api corev1client.EventsGetter, x Index, log *slog.Logger) *Teller {
	return &Teller{api: api, x: x, log: log}
}

// Run tells until ctx ends. It may be called again.
func (t *Teller) Run(ctx context.Context) {
	t.told = map[string]time.Time{}
	for {
		t.tell(ctx)
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
		rest := time.NewTimer(again / 10)
		select {
		case <-ctx.Done():
			rest.Stop()
			return
		case <-rest.C:
		case <-t.x.Slipped():
			rest.Stop()
		}
	}
}

// tell writes an Event of everything that is misspelt and was not told of lately.
func (t *Teller) tell(ctx context.Context) {
	now := time.Now()
	still, alike, in := map[string]time.Time{}, map[string]int{}, map[string]int{}
	for _, m := range t.x.Misspelt() {
		for _, s := range m.Slips {
			message := s.String()
			if m.Owner != "" {
				of := m.Name.Namespace + "/" + m.Owner + " " + message
				if alike[of]++; alike[of] > perOwner {
					continue
				}
			}
			e := event(&m, message, now)
			if in[e.Namespace]++; in[e.Namespace] > perNamespace {
				continue
			}
			key := e.Namespace + "/" + e.Name
			if at, ok := t.told[key]; ok && now.Sub(at) < again {
				still[key] = at
				continue
			}
			if t.write(ctx, e) {
				still[key] = now
			}
		}
	}
	t.told = still
}

// write reports false if it is to be tried again.
func (t *Teller) write(ctx context.Context, e *corev1.Event) bool {
	_, err := t.api.Events(e.Namespace).Create(ctx, e, metav1.CreateOptions{})
	switch {
	case err == nil:
		on := e.InvolvedObject
		t.log.Warn("misspelt for the mesh", "kind", on.Kind, "namespace", on.Namespace, "name", on.Name, "what", e.Message)
	case apierrors.IsAlreadyExists(err): // by the leader before
	case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause): // nobody will ask
	default:
		if ctx.Err() == nil {
			t.log.Warn("event not written; trying again", "namespace", e.Namespace, "name", e.Name, "error", err.Error())
		}
		return false
	}
	return true
}

// event has its name of what it tells, so that it is there once. That of a namespace is in it, where people look.
func event(m *discovery.Misspelt, message string, now time.Time) *corev1.Event {
	on := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: m.Name.Namespace, Name: m.Name.Name, UID: types.UID(m.UID)}
	if m.Name.Namespace == "" {
		on.Kind, on.Namespace = "Namespace", m.Name.Name
	}
	sum := sha256.Sum256([]byte(m.UID + message))
	at := metav1.NewTime(now)
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: strings.TrimRight(on.Name[:min(len(on.Name), longestName)], ".-") + "." + hex.EncodeToString(sum[:8]), Namespace: on.Namespace},
		InvolvedObject: on, Type: corev1.EventTypeWarning, Reason: Reason, Message: message,
		FirstTimestamp: at, LastTimestamp: at, Count: 1, Source: corev1.EventSource{Component: "conduit-controller"}}
}
