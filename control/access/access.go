// Package access says who may call the control plane.
package access

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"connectrpc.com/connect"
)

// Caller is whom a token speaks for, as Kubernetes says.
type Caller struct {
	User   string
	UID    string
	Groups []string
	Extra  map[string][]string

	// Node is the node of the pod that the token is bound to; empty: it is bound to none.
	Node string
	// Pod is the pod that the token is bound to; zero: it is bound to none.
	Pod Pod
	// Agent: it is the agent's ServiceAccount, and Node is set.
	Agent bool
}

// Pod names a pod, and the one life of it.
type Pod struct{ Namespace, Name, UID string }

// ErrUnauthenticated is wrapped by the errors of an Authenticator that are the token's fault. Others are its own: the
// caller may try again.
var ErrUnauthenticated = errors.New("unauthenticated")

// Authenticator tells whose a token is. Implementations are safe for concurrent use.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (Caller, error)
}

// Authorizer tells whether a caller that is no agent may call a procedure, such as
// "/conduit.discovery.v1.DiscoveryService/Lookup". Implementations are safe for concurrent use.
type Authorizer interface {
	Authorize(ctx context.Context, c Caller, procedure string) (bool, error)
}

type callerKey struct{}

// With is ctx with the caller in it.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// From is the caller of a request that has passed a Gate; the zero Caller for a public procedure.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// Rule says who may call a procedure.
type Rule int

// The rules. Whoever has the right that an Authorizer asks for may call what is not for agents alone.
const (
	ByRight    Rule = iota // nobody else
	Public                 // everybody, without a token
	AgentsToo              // agents, and by right
	AgentsOnly             // nobody but agents
)

// Gate checks every request before its handler sees it.
type Gate struct {
	Authn Authenticator
	Authz Authorizer
	Rules map[string]Rule // of procedures
	// Refused is called for every refusal, with the error that the caller gets, and why.
	Refused func(r *http.Request, c Caller, told *connect.Error, err error)
}

// maxToken bounds what is passed on to Kubernetes: its tokens have 1 to 2 KiB.
const maxToken = 16 << 10

// Handler hands to next what may pass. It decides by the head alone: of a body nothing is read before, so that
// strangers cannot have anything kept for them.
func (g *Gate) Handler(next http.Handler) http.Handler {
	answer := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, told, err := g.check(r.Context(), r.URL.Path, r.Header.Get("Authorization"))
		if told != nil {
			if g.Refused != nil {
				g.Refused(r, c, told, err)
			}
			_ = answer.Write(w, r, told) // the caller is gone: nobody to tell
			return
		}
		next.ServeHTTP(w, r.WithContext(With(r.Context(), c)))
	})
}

// check is the caller, and the error that it gets, with the reason. Why Kubernetes failed is not the caller's business.
func (g *Gate) check(ctx context.Context, procedure, authorization string) (c Caller, told *connect.Error, err error) {
	rule := g.Rules[procedure]
	if rule == Public {
		return Caller{}, nil, nil
	}
	refuse := func(code connect.Code, text string) (Caller, *connect.Error, error) {
		return c, connect.NewError(code, errors.New(text)), err
	}
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "bearer") || token == "" || len(token) > maxToken {
		return refuse(connect.CodeUnauthenticated, "want Authorization: Bearer, with a Kubernetes token of the audience conduit")
	}
	c, err = g.Authn.Authenticate(ctx, token)
	switch {
	case errors.Is(err, ErrUnauthenticated):
		return refuse(connect.CodeUnauthenticated, "the token was not accepted")
	case err != nil:
		return refuse(connect.CodeUnavailable, "the token could not be checked")
	case c.Agent && rule != ByRight:
		return c, nil, nil
	case rule == AgentsOnly:
		return refuse(connect.CodePermissionDenied, "only agents may call this, with a token that is bound to their pod")
	}
	var ok bool
	ok, err = g.Authz.Authorize(ctx, c, procedure)
	switch {
	case err != nil:
		return refuse(connect.CodeUnavailable, "permission could not be checked")
	case !ok:
		return refuse(connect.CodePermissionDenied, c.User+" may not get the nonResourceURL "+procedure)
	}
	return c, nil, nil
}
