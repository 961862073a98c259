package differential

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	rpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"conduit.io/conduit/tests/grpctest"
	"conduit.io/conduit/tests/tcptest"
)

// broken is an HTTP/2 server that does f with every stream.
func broken(t *testing.T, f func(*h2stream)) string {
	return tcptest.Serve(t, func(c net.Conn) {
		h := newH2(c, false, f)
		if h.start() == nil {
			h.ended()
		}
	})
}

// nobody is an address on which nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

var grpcHead = []field{{":status", "200"}, {"content-type", "application/grpc"}}

// TestGRPCFailures: what the mesh has to say, a gRPC client hears as a status with a reason, never as a page of HTML.
func TestGRPCFailures(t *testing.T) {
	for _, tt := range []struct {
		name, addr, reason string
		code               codes.Code
	}{
		{"refused", nobody(t), "connect-failed", codes.Unavailable},
		{"closed before the answer", broken(t, func(s *h2stream) { s.c.c.Close() }), "upstream-reset", codes.Unavailable},
		{"closed in the answer", broken(t, func(s *h2stream) { s.headers(grpcHead, false); s.until(s.asked); s.c.c.Close() }), "upstream-reset", codes.Unavailable},
		{"broken protocol", broken(t, func(s *h2stream) { s.data([]byte("data before the head"), false) }), "upstream-protocol", codes.Internal},
		{"another protocol", tcptest.Serve(t, func(c net.Conn) { io.WriteString(c, "220 mail.example ESMTP\r\n"); linger(c) }), "upstream-protocol", codes.Internal},
	} {
		for _, p := range grpcWays(t, tt.addr)[1:] {
			var md, trailer metadata.MD
			_, err := rpc.NewTestServiceClient(dialGRPC(t, p.addr)).UnaryCall(t.Context(), &rpc.SimpleRequest{}, grpc.Header(&md), grpc.Trailer(&trailer))
			reason := append(md.Get("conduit-reason"), trailer.Get("conduit-reason")...)
			if status.Code(err) != tt.code || !slices.Contains(reason, tt.reason) || strings.Contains(err.Error(), "HTTP status") {
				t.Errorf("%s, %d hops: %v, reason %v", tt.name, p.hops, err, reason)
			}
		}
	}
}

// asked reports whether the request has come completely.
func (s *h2stream) asked() bool { return s.ended }

// TestGRPCTrailersOnly looks at the answer on the wire: one block of fields, and nothing more.
func TestGRPCTrailersOnly(t *testing.T) {
	silent := broken(t, func(*h2stream) {})
	for _, tt := range []struct{ name, addr, timeout, code, reason string }{
		{"refused", nobody(t), "1M", "14", "connect-failed"},
		{"past its deadline", silent, "50m", "4", "timeout"},
	} {
		for _, p := range paths(t, tt.addr, tt.addr) {
			if p.in != "http2" || p.out != "http2" {
				continue
			}
			for _, kind := range []string{"application/grpc", "application/grpc+proto", "application/grpc-web+proto", "application/grpc-web-text"} {
				h := newH2(dial(t, p.addr), true, nil)
				if err := h.start(); err != nil {
					t.Fatal(err)
				}
				req := request{method: "POST", scheme: "http", authority: "h", path: "/a/b", fields: []field{{"content-type", kind}, {"te", "trailers"}, {"grpc-timeout", tt.timeout}}}
				s := h.open(req.head2(), false)
				m := s.response()
				want, _, _ := strings.Cut(kind, "+")
				if m == nil || m.line != "200" || m.get("grpc-status") != tt.code || m.get("conduit-reason") != tt.reason || !strings.HasPrefix(m.get("content-type"), want) ||
					len(m.body)+len(m.trailers) != 0 || m.end != whole {
					t.Errorf("%s, %s, %s: %v", p, tt.name, kind, m)
				}
			}
		}
	}
}

// TestGRPCResets: how a server resets a call is its own affair, and reaches the client as it is.
func TestGRPCResets(t *testing.T) {
	for code, want := range map[http2.ErrCode]codes.Code{
		http2.ErrCodeRefusedStream: codes.Unavailable, http2.ErrCodeCancel: codes.Canceled, http2.ErrCodeInternal: codes.Internal,
		http2.ErrCodeEnhanceYourCalm: codes.ResourceExhausted, http2.ErrCodeInadequateSecurity: codes.PermissionDenied,
	} {
		for _, head := range []bool{false, true} {
			addr := broken(t, func(s *h2stream) {
				if head {
					s.headers(grpcHead, false)
				}
				s.cancel(code)
			})
			for _, p := range grpcWays(t, addr) {
				if _, err := rpc.NewTestServiceClient(dialGRPC(t, p.addr)).UnaryCall(t.Context(), &rpc.SimpleRequest{}); status.Code(err) != want {
					t.Errorf("%v, head %v, %d hops: %v, want %v", code, head, p.hops, err, want)
				}
			}
		}
	}
}

// TestGRPCDrained: calls that are under way when a proxy leaves come to their end.
func TestGRPCDrained(t *testing.T) {
	_, addr := serveGRPC(t)
	p := startProxy(t, config{"address": "127.0.0.1:0", "upstream": addr, "protocol": "http2"})
	c := rpc.NewTestServiceClient(dialGRPC(t, p.addrs[0]))
	both, err := c.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	talk := func() error {
		if err := both.Send(&rpc.StreamingOutputCallRequest{Payload: grpctest.Filled('x', 1000)}); err != nil {
			return err
		}
		_, err := both.Recv()
		return err
	}
	if err := talk(); err != nil {
		t.Fatal(err)
	}
	left := make(chan struct{})
	go func() { p.Shutdown(patience); close(left) }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for { // a new call fails as soon as the proxy takes no more, with the word that it may be sent elsewhere
		if _, err := c.UnaryCall(ctx, &rpc.SimpleRequest{}); err != nil {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("a new call while the proxy leaves: %v", err)
			}
			break
		}
	}
	for range 10 {
		if err := talk(); err != nil {
			t.Fatalf("the stream that was under way: %v", err)
		}
	}
	both.CloseSend()
	if _, err := both.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream that was under way: %v at its end", err)
	}
	select {
	case <-left:
	case <-time.After(patience):
		t.Error("the proxy does not leave")
	}
}

// TestGRPCMetrics: a call that its client gives up is no failure of the server, unless its time was up.
func TestGRPCMetrics(t *testing.T) {
	s, addr := serveGRPC(t)
	p := startProxy(t, config{"address": "127.0.0.1:0", "upstream": addr, "protocol": "http2"})
	c := rpc.NewTestServiceClient(dialGRPC(t, p.addrs[0]))
	ctx, cancel := context.WithCancel(t.Context())
	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := both.Send(&rpc.StreamingOutputCallRequest{Payload: grpctest.Filled('x', 1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := both.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	s.told(t, "a cancelled stream")
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	c.EmptyCall(short, &rpc.Empty{})
	s.told(t, "a call past its deadline")
	p.counts(t, `response_total{`, `protocol="grpc"`, `classification="success"`, `grpc_status_code="1"`, `reason="downstream-reset"} 1`)
	p.counts(t, `response_total{`, `protocol="grpc"`, `classification="failure"`, `grpc_status_code="4"`, `} 1`)
}

// counts waits until a line of the proxy's metrics has all the parts.
func (p *proxy) counts(t *testing.T, parts ...string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var all string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		all = string(p.Stats())
	line:
		for l := range strings.Lines(all) {
			for _, part := range parts {
				if !strings.Contains(l, part) {
					continue line
				}
			}
			return
		}
	}
	t.Errorf("metrics have no line with %q:\n%s", parts, all)
}
