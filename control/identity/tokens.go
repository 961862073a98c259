package identity

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"conduit.io/conduit/control/access"

	"golang.org/x/time/rate"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// Audience is what tokens for the controller are made for.
	Audience = "conduit"

	// What the API server says of a token that is bound to a pod; of one that is bound to a node, the node alone.
	nodeExtra = "authentication.kubernetes.io/node-name"
	podExtra  = "authentication.kubernetes.io/pod-name"
	uidExtra  = "authentication.kubernetes.io/pod-uid"

	// maxToken bounds a token, in bytes.
	maxToken = 16 << 10
	// maxKnown bounds the tokens that are remembered, and as many refused ones.
	maxKnown = 8192
	// refusedLife is how long a refused token is refused without asking again.
	refusedLife = 10 * time.Second
	// reviewTimeout bounds one question to the API server.
	reviewTimeout = 10 * time.Second
	// reviewsPerSecond bounds what strangers can make the API server do; agents are remembered.
	reviewsPerSecond = 50
	reviewsAtOnce    = 1000
)

// reviewer asks the API server about a token.
type reviewer interface {
	Create(ctx context.Context, review *authv1.TokenReview, opts metav1.CreateOptions) (*authv1.TokenReview, error)
}

// tokens tells callers by their tokens. A token that was accepted is believed for a short time, and so is one that was
// refused; a token whose pod or account is gone ages out.
type tokens struct {
	api    reviewer
	agent  string // the user name of the agents' ServiceAccount
	life   time.Duration
	now    func() time.Time
	limit  *rate.Limiter
	counts *counts

	mu      sync.Mutex
	known   map[[32]byte]verdict // accepted
	refused map[[32]byte]verdict
	asking  map[[32]byte]chan struct{} // closed when the question is answered
}

type verdict struct {
	caller access.Caller
	err    error
	until  time.Time
}

func newTokens(api reviewer, agent string, life time.Duration, now func() time.Time, c *counts) *tokens {
	return &tokens{api: api, agent: agent, life: life, now: now, counts: c, limit: rate.NewLimiter(reviewsPerSecond, reviewsAtOnce),
		known: map[[32]byte]verdict{}, refused: map[[32]byte]verdict{}, asking: map[[32]byte]chan struct{}{}}
}

// Authenticate is access.Authenticator's: it says whose a token is. Errors wrap access.ErrUnauthenticated when the token is to
// blame, and not when that could not be found out.
func (s *Service) Authenticate(ctx context.Context, token string) (access.Caller, error) {
	return s.tokens.authenticate(ctx, token)
}

func (t *tokens) authenticate(ctx context.Context, token string) (access.Caller, error) {
	if len(token) > maxToken || strings.Count(token, ".") != 2 {
		return access.Caller{}, t.refuse("malformed-token", fmt.Errorf("what was sent is no ServiceAccount token: %w", access.ErrUnauthenticated))
	}
	hash := sha256.Sum256([]byte(token))
	for {
		t.mu.Lock()
		v, ok := t.recall(hash)
		wait := t.asking[hash]
		if !ok && wait == nil {
			t.asking[hash] = make(chan struct{})
		}
		t.mu.Unlock()
		switch {
		case ok && v.err != nil:
			return access.Caller{}, t.refuse("refused-token", v.err)
		case ok:
			return v.caller, nil
		case wait == nil:
			return t.ask(ctx, token, hash)
		}
		select { // somebody asks already
		case <-wait:
		case <-ctx.Done():
			return access.Caller{}, ctx.Err()
		}
	}
}

// refuse counts err, and returns it: who knows where the caller is, logs it.
func (t *tokens) refuse(reason string, err error) error {
	t.counts.count(reason)
	return err
}

// recall is called with the lock.
func (t *tokens) recall(hash [32]byte) (verdict, bool) {
	for _, m := range []map[[32]byte]verdict{t.known, t.refused} {
		if v, ok := m[hash]; ok && t.now().Before(v.until) {
			return v, true
		}
	}
	return verdict{}, false
}

// stranger reports whether the token was not accepted lately: those that were may be asked about whatever strangers do.
func (t *tokens) stranger(hash [32]byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, known := t.known[hash]
	return !known
}

// ask asks the API server. Whoever waits for the same answer is released.
func (t *tokens) ask(ctx context.Context, token string, hash [32]byte) (access.Caller, error) {
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		close(t.asking[hash])
		delete(t.asking, hash)
	}()
	if t.stranger(hash) && !t.limit.AllowN(t.now(), 1) {
		return access.Caller{}, t.refuse("throttled-token", errors.New("too many unknown tokens at once"))
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	t.counts.review()
	answer, err := t.api.Create(ctx, &authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}}}, metav1.CreateOptions{})
	if err != nil {
		// The error of the API server might quote the request: only its kind is told.
		return access.Caller{}, t.refuse("unreviewed-token", errors.New("the API server could not be asked about the token"))
	}
	v := t.judge(answer, token)
	t.mu.Lock()
	if v.err != nil {
		delete(t.known, hash)
		keep(t.refused, hash, v, t.now())
	} else {
		keep(t.known, hash, v, t.now())
	}
	t.mu.Unlock()
	if v.err != nil {
		return access.Caller{}, t.refuse("refused-token", v.err)
	}
	return v.caller, nil
}

func (t *tokens) judge(answer *authv1.TokenReview, token string) verdict {
	now, st := t.now(), &answer.Status
	switch {
	case !st.Authenticated:
		return verdict{err: fmt.Errorf("the API server does not accept the token: %w", access.ErrUnauthenticated), until: now.Add(refusedLife)}
	case !slices.Contains(st.Audiences, Audience):
		return verdict{err: fmt.Errorf("the token is not for the audience %q: %w", Audience, access.ErrUnauthenticated), until: now.Add(refusedLife)}
	}
	c := access.Caller{User: st.User.Username, UID: st.User.UID, Groups: st.User.Groups, Extra: map[string][]string{}}
	for k, v := range st.User.Extra {
		c.Extra[k] = v
	}
	if n := c.Extra[nodeExtra]; len(n) == 1 {
		c.Node, c.Agent = n[0], c.User == t.agent && len(c.Extra[uidExtra]) == 1
	}
	account := strings.Split(c.User, ":") // system:serviceaccount:NAMESPACE:NAME, and a pod has an account of its own namespace
	if name, uid := c.Extra[podExtra], c.Extra[uidExtra]; len(account) == 4 && len(name) == 1 && len(uid) == 1 {
		c.Pod = access.Pod{Namespace: account[2], Name: name[0], UID: uid[0]}
	}
	until := now.Add(t.life)
	if end := expiry(token); !end.IsZero() && end.Before(until) {
		until = end
	}
	return verdict{caller: c, until: until}
}

// expiry reads the token's own end, once the API server has said that it is genuine; zero if it has none.
func expiry(token string) time.Time {
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Exp int64 `json:"exp"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Exp == 0 {
		return time.Time{}
	}
	return time.Unix(claims.Exp, 0)
}

// keep makes room, for what has expired first.
func keep(m map[[32]byte]verdict, hash [32]byte, v verdict, now time.Time) {
	if len(m) >= maxKnown {
		for h, old := range m {
			if !now.Before(old.until) {
				delete(m, h)
			}
		}
		for h := range m {
			if len(m) < maxKnown {
				break
			}
			delete(m, h)
		}
	}
	m[hash] = v
}
