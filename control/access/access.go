// Package access says who may call the control plane.
package access

import (
	"context"
	"errors"
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
	// Agent: it is the agent's ServiceAccount, and Node is set.
	Agent bool
}

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

// From is the caller of a request that has passed an Interceptor; the zero Caller for a public procedure.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// Gate checks every request before its handler sees it.
type Gate struct {
	Authn Authenticator
	Authz Authorizer
	// Public are procedures that need no token; Agents those that agents alone may call. Agents may call everything.
	Public, Agents map[string]bool
	// Refused is called for every refusal, with the code that the caller gets.
	Refused func(procedure string, c Caller, code connect.Code, err error)
}

// maxToken bounds what is passed on to Kubernetes: its tokens have 1 to 2 KiB.
const maxToken = 16 << 10

// check is ctx with the caller, or the error that the caller gets. Why Kubernetes failed is not the caller's business.
func (g *Gate) check(ctx context.Context, procedure, authorization string) (context.Context, error) {
	if g.Public[procedure] {
		return ctx, nil
	}
	refuse := func(c Caller, code connect.Code, told string, err error) (context.Context, error) {
		if g.Refused != nil {
			g.Refused(procedure, c, code, err)
		}
		return nil, connect.NewError(code, errors.New(told))
	}
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "bearer") || token == "" || len(token) > maxToken {
		return refuse(Caller{}, connect.CodeUnauthenticated, "want Authorization: Bearer, with a Kubernetes token of the audience conduit", ErrUnauthenticated)
	}
	c, err := g.Authn.Authenticate(ctx, token)
	switch {
	case errors.Is(err, ErrUnauthenticated):
		return refuse(c, connect.CodeUnauthenticated, "the token was not accepted", err)
	case err != nil:
		return refuse(c, connect.CodeUnavailable, "the token could not be checked", err)
	case c.Agent:
		return With(ctx, c), nil
	case g.Agents[procedure]:
		return refuse(c, connect.CodePermissionDenied, "only agents may call this, with a token that is bound to their pod", nil)
	}
	ok, err := g.Authz.Authorize(ctx, c, procedure)
	switch {
	case err != nil:
		return refuse(c, connect.CodeUnavailable, "permission could not be checked", err)
	case !ok:
		return refuse(c, connect.CodePermissionDenied, c.User+" may not get the nonResourceURL "+procedure, nil)
	}
	return With(ctx, c), nil
}

// WrapUnary is connect.Interceptor's.
func (g *Gate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, err := g.check(ctx, req.Spec().Procedure, req.Header().Get("Authorization"))
		if err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingClient is connect.Interceptor's: Gate is for servers.
func (g *Gate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler is connect.Interceptor's.
func (g *Gate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		ctx, err := g.check(ctx, conn.Spec().Procedure, conn.RequestHeader().Get("Authorization"))
		if err != nil {
			return err
		}
		return next(ctx, conn)
	}
}
