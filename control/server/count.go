package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"conduit.io/conduit/control/access"

	"connectrpc.com/connect"
)

// counter counts the ends of calls that the gate has let through, and whose messages were understood.
type counter struct{ s *Server }

// heard is set by the counter of a call, if it comes to that.
type heard struct{ by bool }

type heardKey struct{}

func hear(ctx context.Context) {
	if h, ok := ctx.Value(heardKey{}).(*heard); ok {
		h.by = true
	}
}

// understood counts and logs what ends before the counter hears of it: messages that are too large, or none.
func (s *Server) understood(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, end := &heard{}, &ending{ResponseWriter: w, status: http.StatusOK}
		r = r.WithContext(context.WithValue(r.Context(), heardKey{}, h))
		next.ServeHTTP(end, r)
		switch told := connect.NewError(end.code(), errors.New("a message that cannot be taken")); {
		case h.by:
		case told.Code() == connect.CodeCanceled: // by the caller
			s.count(r.URL.Path, told)
		default:
			s.refused(r, access.From(r.Context()), told, nil)
		}
	})
}

// ending notes how an answer ends.
type ending struct {
	http.ResponseWriter
	status int
}

// WriteHeader is http.ResponseWriter's.
func (e *ending) WriteHeader(status int) {
	e.status = status
	e.ResponseWriter.WriteHeader(status)
}

// Flush is http.Flusher's.
func (e *ending) Flush() { _ = http.NewResponseController(e.ResponseWriter).Flush() } // the client is gone: nobody to tell

// Unwrap is for http.ResponseController.
func (e *ending) Unwrap() http.ResponseWriter { return e.ResponseWriter }

// code is that of an answer which is an error: gRPC's trailer, or what the Connect protocol makes a status of.
func (e *ending) code() connect.Code {
	if n, err := strconv.Atoi(e.Header().Get(http.TrailerPrefix + "Grpc-Status")); err == nil && n > 0 && n < len(codes{}) {
		return connect.Code(n)
	}
	switch e.status {
	case http.StatusTooManyRequests:
		return connect.CodeResourceExhausted
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType:
		return connect.CodeUnimplemented
	case 499:
		return connect.CodeCanceled
	}
	return connect.CodeInvalidArgument
}

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
		hear(ctx)
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
		hear(ctx)
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
