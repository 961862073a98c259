package differential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health"
	health_pb "google.golang.org/grpc/health/grpc_health_v1"
	rpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	reflection_pb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"conduit.io/conduit/tests/grpctest"
)

// service is gRPC's own test service.
type service struct {
	grpctest.Streams
	ended      chan error   // why a call ended that waits for its end
	compressed atomic.Value // how the last request came
}

// UnaryCall answers with what it got, or fails as it is told.
func (s *service) UnaryCall(ctx context.Context, r *rpc.SimpleRequest) (*rpc.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	e := r.GetResponseStatus()
	if e.GetMessage() != "trailers only" {
		grpc.SetHeader(ctx, metadata.Pairs("in-header", strings.Join(md.Get("sent"), ","), "bytes-bin", strings.Join(md.Get("sent-bin"), "")))
	}
	grpc.SetTrailer(ctx, metadata.Pairs("in-trailer", "t", "trailer-bin", "\x00\xff"))
	if e.GetCode() == 0 {
		return &rpc.SimpleResponse{Payload: r.GetPayload()}, nil
	}
	st, err := status.New(codes.Code(e.GetCode()), e.GetMessage()).WithDetails(&rpc.EchoStatus{Code: 7, Message: "a detail"})
	if err != nil {
		return nil, err
	}
	return nil, st.Err()
}

// EmptyCall waits for the end of its context, and says how much time it had.
func (s *service) EmptyCall(ctx context.Context, _ *rpc.Empty) (*rpc.Empty, error) {
	if d, ok := ctx.Deadline(); ok && time.Until(d) > time.Hour {
		return nil, status.Error(codes.OutOfRange, "the deadline is far away")
	}
	grpc.SendHeader(ctx, metadata.Pairs("began", "yes"))
	<-ctx.Done()
	s.ended <- ctx.Err()
	return nil, status.FromContextError(ctx.Err()).Err()
}

// TagRPC implements stats.Handler, as do the three that follow.
func (s *service) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// TagConn implements stats.Handler.
func (s *service) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (s *service) HandleConn(context.Context, stats.ConnStats) {}

// HandleRPC implements stats.Handler: it notes compression, which the library undoes.
func (s *service) HandleRPC(_ context.Context, r stats.RPCStats) {
	if h, ok := r.(*stats.InHeader); ok {
		s.compressed.Store(h.Compression)
	}
}

func serveGRPC(t *testing.T) (*service, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &service{ended: make(chan error, 8)}
	s.Cut = func(err error) { s.ended <- err }
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(16<<20), grpc.StatsHandler(s))
	rpc.RegisterTestServiceServer(srv, s)
	health_pb.RegisterHealthServer(srv, health.NewServer())
	reflection.Register(srv)
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return s, l.Addr().String()
}

func dialGRPC(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// grpcWays are directly, one hop, and two.
func grpcWays(t *testing.T, addr string) []path {
	out := []path{{in: "http2", out: "http2", addr: addr}}
	for _, p := range paths(t, addr, addr) {
		if p.in == "http2" && p.out == "http2" {
			out = append(out, p)
		}
	}
	return out
}

// TestGRPC has a real client and a real server.
func TestGRPC(t *testing.T) {
	s, addr := serveGRPC(t)
	for _, p := range grpcWays(t, addr) {
		conn := dialGRPC(t, p.addr)
		c := rpc.NewTestServiceClient(conn)
		t.Run(fmt.Sprintf("unary, %d hops", p.hops), func(t *testing.T) { unary(t, c, s) })
		t.Run(fmt.Sprintf("errors, %d hops", p.hops), func(t *testing.T) { grpcErrors(t, c) })
		t.Run(fmt.Sprintf("streams, %d hops", p.hops), func(t *testing.T) { streams(t, c) })
		t.Run(fmt.Sprintf("ends, %d hops", p.hops), func(t *testing.T) { ends(t, c, s) })
		t.Run(fmt.Sprintf("tools, %d hops", p.hops), func(t *testing.T) { tools(t, conn) })
	}
}

func unary(t *testing.T, c rpc.TestServiceClient, s *service) {
	binary := string([]byte{0, 1, 254, 255, 0, ','})
	for _, size := range []int{0, 1, 100_000, 4 << 20} {
		for _, coding := range []string{"", gzip.Name} {
			var header, trailer metadata.MD
			ctx := metadata.AppendToOutgoingContext(t.Context(), "sent", "one", "sent", "two", "sent-bin", binary)
			opts := []grpc.CallOption{grpc.Header(&header), grpc.Trailer(&trailer)}
			if coding != "" {
				opts = append(opts, grpc.UseCompressor(coding))
			}
			r, err := c.UnaryCall(ctx, &rpc.SimpleRequest{Payload: grpctest.Filled('u', size)}, opts...)
			if err != nil || !bytes.Equal(r.GetPayload().GetBody(), grpctest.Filled('u', size).GetBody()) {
				t.Fatalf("%d bytes: %d came back, %v", size, len(r.GetPayload().GetBody()), err)
			}
			if !slices.Equal(header.Get("in-header"), []string{"one,two"}) || !slices.Equal(header.Get("bytes-bin"), []string{binary}) ||
				!slices.Equal(trailer.Get("in-trailer"), []string{"t"}) || !slices.Equal(trailer.Get("trailer-bin"), []string{"\x00\xff"}) {
				t.Errorf("header %v, trailer %v", header, trailer)
			}
			if got := s.compressed.Load(); got != coding {
				t.Errorf("sent with compression %q, came with %q", coding, got)
			}
		}
	}
}

// grpcErrors asks for errors: code, message and details are the server's.
func grpcErrors(t *testing.T, c rpc.TestServiceClient) {
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		for _, message := range []string{"50% of it: ü\n", "trailers only", ""} {
			var trailer metadata.MD
			_, err := c.UnaryCall(t.Context(), &rpc.SimpleRequest{ResponseStatus: &rpc.EchoStatus{Code: int32(code), Message: message}}, grpc.Trailer(&trailer))
			st := status.Convert(err)
			if st.Code() != code || st.Message() != message || len(st.Details()) != 1 || len(trailer.Get("in-trailer")) != 1 || len(trailer.Get("conduit-reason")) != 0 {
				t.Errorf("%v %q with details %v, trailer %v; want %v", st.Code(), st.Message(), st.Details(), trailer, code)
			} else if d, ok := st.Details()[0].(*rpc.EchoStatus); !ok || d.GetMessage() != "a detail" {
				t.Errorf("details: %v", st.Details())
			}
		}
	}
	if _, err := c.UnimplementedCall(t.Context(), &rpc.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown method: %v", err)
	}
}

// streams makes one stream of each kind.
func streams(t *testing.T, c rpc.TestServiceClient) {
	ask := &rpc.StreamingOutputCallRequest{ResponseStatus: &rpc.EchoStatus{Code: 9, Message: "at the end"}}
	for i := range 100 {
		ask.ResponseParameters = append(ask.ResponseParameters, &rpc.ResponseParameters{Size: int32(i * 100)})
	}
	out, err := c.StreamingOutputCall(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		r, err := out.Recv()
		if err != nil || !bytes.Equal(r.GetPayload().GetBody(), grpctest.Filled(byte(i), i*100).GetBody()) {
			t.Fatalf("server stream: message %d has %d bytes, %v", i, len(r.GetPayload().GetBody()), err)
		}
	}
	if _, err := out.Recv(); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "at the end" {
		t.Errorf("server stream: %v at its end", err)
	}
	in, err := c.StreamingInputCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := in.Send(&rpc.StreamingInputCallRequest{Payload: grpctest.Filled('i', i*100)}); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := in.CloseAndRecv(); err != nil || r.GetAggregatedPayloadSize() != 495_000 {
		t.Errorf("client stream: %d bytes, %v", r.GetAggregatedPayloadSize(), err)
	}
	both, err := c.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 { // each message waits for the answer to the one before it
		if err := both.Send(&rpc.StreamingOutputCallRequest{Payload: grpctest.Filled(byte(i), i*10)}); err != nil {
			t.Fatal(err)
		}
		if r, err := both.Recv(); err != nil || !bytes.Equal(r.GetPayload().GetBody(), grpctest.Filled(byte(i), i*10).GetBody()) {
			t.Fatalf("both: message %d has %d bytes, %v", i, len(r.GetPayload().GetBody()), err)
		}
	}
	both.CloseSend()
	if _, err := both.Recv(); !errors.Is(err, io.EOF) || len(both.Trailer().Get("in-trailer")) != 1 {
		t.Errorf("both: %v, trailers %v", err, both.Trailer())
	}
}

// ends has calls that end before their time, by deadline and by cancellation: the server is told.
func ends(t *testing.T, c rpc.TestServiceClient, s *service) {
	far, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
	defer cancel()
	if _, err := c.EmptyCall(far, &rpc.Empty{}); status.Code(err) != codes.OutOfRange {
		t.Errorf("the server does not know the deadline: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.EmptyCall(short, &rpc.Empty{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("past its deadline: %v", err)
	}
	s.told(t, "a call past its deadline")
	stopped, cancel := context.WithCancel(t.Context())
	both, err := c.FullDuplexCall(stopped)
	if err != nil {
		t.Fatal(err)
	}
	if err := both.Send(&rpc.StreamingOutputCallRequest{Payload: grpctest.Filled('x', 10)}); err != nil {
		t.Fatal(err)
	}
	if _, err := both.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := both.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	if err := s.told(t, "a cancelled stream"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: the server saw %v", err)
	}
}

func (s *service) told(t *testing.T, what string) error {
	t.Helper()
	select {
	case err := <-s.ended:
		return err
	case <-time.After(patience):
		t.Fatalf("the server was not told of %s", what)
		return nil
	}
}

// tools are what people poke at servers with.
func tools(t *testing.T, conn *grpc.ClientConn) {
	if r, err := health_pb.NewHealthClient(conn).Check(t.Context(), &health_pb.HealthCheckRequest{}); err != nil || r.GetStatus() != health_pb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", r, err)
	}
	info, err := reflection_pb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list := &reflection_pb.ServerReflectionRequest{MessageRequest: &reflection_pb.ServerReflectionRequest_ListServices{ListServices: "*"}}
	if err := info.Send(list); err != nil {
		t.Fatal(err)
	}
	if r, err := info.Recv(); err != nil || !strings.Contains(r.String(), "grpc.testing.TestService") {
		t.Errorf("reflection: %v, %v", r, err)
	}
	info.CloseSend()
	if _, err := info.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("reflection: %v at its end", err)
	}
}
