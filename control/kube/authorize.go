package kube

import (
	"context"
	"strings"
	"sync"
	"time"

	"conduit.io/conduit/control/access"

	authzv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authzclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
)

// How long an answer is believed, how many are remembered, and how long the API server may take to give one.
const (
	verdictLife   = 30 * time.Second
	maxVerdicts   = 4096
	reviewTimeout = 5 * time.Second
)

// Authorizer asks the API server whether a caller may "get" the nonResourceURL that is a procedure's path. It is an
// access.Authorizer.
type Authorizer struct {
	api authzclient.SubjectAccessReviewsGetter

	mu    sync.Mutex
	known map[string]verdict
}

type verdict struct {
	allowed bool
	until   time.Time
}

// NewAuthorizer asks by api.
func NewAuthorizer(api authzclient.SubjectAccessReviewsGetter) *Authorizer {
	return &Authorizer{api: api, known: map[string]verdict{}}
}

// Authorize is access.Authorizer's.
func (a *Authorizer) Authorize(ctx context.Context, c access.Caller, procedure string) (bool, error) {
	key := strings.Join(append([]string{procedure, c.User, c.UID}, c.Groups...), "\x00")
	a.mu.Lock()
	v, ok := a.known[key]
	a.mu.Unlock()
	if ok && time.Now().Before(v.until) {
		return v.allowed, nil
	}
	review := &authzv1.SubjectAccessReview{Spec: authzv1.SubjectAccessReviewSpec{User: c.User, UID: c.UID, Groups: c.Groups,
		NonResourceAttributes: &authzv1.NonResourceAttributes{Path: procedure, Verb: "get"}}}
	if len(c.Extra) > 0 {
		review.Spec.Extra = map[string]authzv1.ExtraValue{}
		for k, values := range c.Extra {
			review.Spec.Extra[k] = values
		}
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	res, err := a.api.SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= maxVerdicts {
		clear(a.known)
	}
	a.known[key] = verdict{res.Status.Allowed, time.Now().Add(verdictLife)}
	return res.Status.Allowed, nil
}
