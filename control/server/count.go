package server

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"connectrpc.com/connect"
)

// counter counts the ends of calls that the gate has let through.
type counter struct{ s *Server }

func (s *Server) count(procedure string, err error) {
	code := connect.Code(0)
	if err != nil {
		code = connect.CodeOf(err)
	}
	if n := s.codes[procedure]; n != nil && int(code) < len(n) {
		n[code].Add(1)
	}
}

// WrapUnary is connect.Interceptor's.
func (c counter) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		c.s.count(req.Spec().Procedure, err)
		return res, err
	}
}

// WrapStreamingClient is connect.Interceptor's: counter is for servers.
func (c counter) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler is connect.Interceptor's.
func (c counter) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		err := next(ctx, conn)
		c.s.count(conn.Spec().Procedure, err)
		return err
	}
}

// Write writes the server's metrics in the Prometheus text exposition format.
func (s *Server) Write(w io.Writer) {
	const name = "conduit_controller_calls_total"
	fmt.Fprintf(w, "# HELP %s Calls and streams that have ended, by procedure and gRPC code.\n# TYPE %s counter\n", name, name)
	for _, p := range slices.Sorted(maps.Keys(s.codes)) {
		for code := range s.codes[p] {
			if n := s.codes[p][code].Load(); n > 0 || code == 0 {
				text := "ok"
				if code > 0 {
					text = connect.Code(code).String()
				}
				fmt.Fprintf(w, "%s{procedure=%q,code=%q} %d\n", name, p, text, n)
			}
		}
	}
}
