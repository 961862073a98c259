package netns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	rpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"conduit.io/conduit/tests/grpctest"
	"conduit.io/conduit/tests/testnet"
)

// calls is a server of gRPC's own test service, with calls of every kind.
type calls struct {
	grpctest.Streams
	cancelled chan string // what ended a call that waits for its end
	began     chan struct{}
}

func (s *calls) UnaryCall(ctx context.Context, r *rpc.SimpleRequest) (*rpc.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	who, _ := peer.FromContext(ctx)
	from := netip.MustParseAddrPort(who.Addr.String()).Addr().Unmap()
	grpc.SetHeader(ctx, metadata.Pairs("in-header", strings.Join(md.Get("sent"), ","), "bytes-bin", strings.Join(md.Get("sent-bin"), "")))
	grpc.SetTrailer(ctx, metadata.Pairs("in-trailer", from.String()))
	if e := r.GetResponseStatus(); e.GetCode() != 0 {
		st, err := status.New(codes.Code(e.GetCode()), e.GetMessage()).WithDetails(&rpc.EchoStatus{Code: 7, Message: "a detail"})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
	return &rpc.SimpleResponse{Payload: r.GetPayload()}, nil
}

// EmptyCall waits for the end of its context.
func (s *calls) EmptyCall(ctx context.Context, _ *rpc.Empty) (*rpc.Empty, error) {
	s.began <- struct{}{}
	<-ctx.Done()
	s.cancelled <- ctx.Err().Error()
	return nil, status.FromContextError(ctx.Err()).Err()
}

func serveCalls(t *testing.T, w *town, port uint16) (*calls, *grpc.Server, uint16) {
	t.Helper()
	l := testnet.Listen(t, w.server, "tcp", netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())
	s := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
	c := &calls{cancelled: make(chan string, 1), began: make(chan struct{}, 1)}
	rpc.RegisterTestServiceServer(s, c)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return c, s, netip.MustParseAddrPort(l.Addr().String()).Port()
}

func dialCalls(t *testing.T, p path) rpc.TestServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+p.to.String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return p.from.DialContext(ctx, "tcp", addr) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return rpc.NewTestServiceClient(conn)
}

func testGRPC(t *testing.T, w *town) {
	s, _, port := serveCalls(t, w, 0)
	w.onPaths(t, port, func(t *testing.T, p path) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := dialCalls(t, p)
		unaryCalls(ctx, t, c, p)
		failingCalls(ctx, t, c)
		endedCalls(ctx, t, c, s)
		streams(ctx, t, c)
		manyStreams(ctx, t, c)
	})
	t.Run("killed", func(t *testing.T) { killedServer(t, w) })
}

func unaryCalls(ctx context.Context, t *testing.T, c rpc.TestServiceClient, p path) {
	t.Helper()
	binary := string([]byte{0, 1, 254, 255, 0})
	for _, size := range []int{0, 1, 100_000, 4 << 20} {
		var header, trailer metadata.MD
		ctx := metadata.AppendToOutgoingContext(ctx, "sent", "one", "sent", "two", "sent-bin", binary)
		r, err := c.UnaryCall(ctx, &rpc.SimpleRequest{Payload: grpctest.Filled('u', size)}, grpc.Header(&header), grpc.Trailer(&trailer))
		if err != nil || !bytes.Equal(r.GetPayload().GetBody(), grpctest.Filled('u', size).GetBody()) {
			t.Fatalf("unary call of %d bytes: %d bytes, %v", size, len(r.GetPayload().GetBody()), err)
		}
		if !slices.Equal(header.Get("in-header"), []string{"one,two"}) || !slices.Equal(header.Get("bytes-bin"), []string{binary}) ||
			!slices.Equal(trailer.Get("in-trailer"), []string{p.client().String()}) {
			t.Errorf("header %v, trailer %v; want what was sent, and the client's address", header, trailer)
		}
	}
}

// failingCalls asks for errors: code, message and details are the server's.
func failingCalls(ctx context.Context, t *testing.T, c rpc.TestServiceClient) {
	t.Helper()
	for _, code := range []codes.Code{codes.NotFound, codes.Unavailable, codes.Internal} {
		var trailer metadata.MD
		_, err := c.UnaryCall(ctx, &rpc.SimpleRequest{ResponseStatus: &rpc.EchoStatus{Code: int32(code), Message: "50% of it: ü\n"}}, grpc.Trailer(&trailer))
		st := status.Convert(err)
		if st.Code() != code || st.Message() != "50% of it: ü\n" || len(st.Details()) != 1 || len(trailer.Get("in-trailer")) != 1 {
			t.Errorf("%v %q with details %v, trailer %v; want %v", st.Code(), st.Message(), st.Details(), trailer, code)
			continue
		}
		if d, ok := st.Details()[0].(*rpc.EchoStatus); !ok || d.GetMessage() != "a detail" {
			t.Errorf("details: %v", st.Details())
		}
	}
	if _, err := c.UnimplementedCall(ctx, &rpc.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown method: %v", err)
	}
}

// endedCalls lets a deadline pass and cancels: both are seen by the server.
func endedCalls(ctx context.Context, t *testing.T, c rpc.TestServiceClient, s *calls) {
	t.Helper()
	seen := func(want string) {
		t.Helper()
		select {
		case got := <-s.cancelled:
			if got != want {
				t.Errorf("the server saw %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("the server did not see %q", want)
		}
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := c.EmptyCall(short, &rpc.Empty{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("call past its deadline: %v", err)
	}
	<-s.began
	// Which of the two reaches the server first, its own clock or the client's reset, is open.
	select {
	case <-s.cancelled:
	case <-time.After(10 * time.Second):
		t.Error("the server did not see the deadline pass")
	}
	long, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { <-s.began; cancel() }()
	if _, err := c.EmptyCall(long, &rpc.Empty{}); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled call: %v", err)
	}
	seen(context.Canceled.Error())
}

// streams makes one stream of each kind.
func streams(ctx context.Context, t *testing.T, c rpc.TestServiceClient) {
	t.Helper()
	ask := &rpc.StreamingOutputCallRequest{}
	for i := range 200 {
		ask.ResponseParameters = append(ask.ResponseParameters, &rpc.ResponseParameters{Size: int32(i * 100)})
	}
	out, err := c.StreamingOutputCall(ctx, ask)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		r, err := out.Recv()
		if err != nil || !bytes.Equal(r.GetPayload().GetBody(), grpctest.Filled(byte(i), i*100).GetBody()) {
			t.Fatalf("server stream: message %d has %d bytes, %v", i, len(r.GetPayload().GetBody()), err)
		}
	}
	if _, err := out.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("server stream: %v at its end", err)
	}
	in, err := c.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if err := in.Send(&rpc.StreamingInputCallRequest{Payload: grpctest.Filled('i', i*100)}); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := in.CloseAndRecv(); err != nil || r.GetAggregatedPayloadSize() != 1_990_000 {
		t.Errorf("client stream: %d bytes, %v", r.GetAggregatedPayloadSize(), err)
	}
	if err := pingPong(ctx, c, 100); err != nil {
		t.Error(err)
	}
}

// pingPong sends a message only after the answer to the one before it: nothing may be held back.
func pingPong(ctx context.Context, c rpc.TestServiceClient, n int) error {
	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	for i := range n {
		if err := both.Send(&rpc.StreamingOutputCallRequest{Payload: grpctest.Filled(byte(i), i*10)}); err != nil {
			return fmt.Errorf("stream: send message %d: %w", i, err)
		}
		r, err := both.Recv()
		if err != nil || !bytes.Equal(r.GetPayload().GetBody(), grpctest.Filled(byte(i), i*10).GetBody()) {
			return fmt.Errorf("stream: message %d has %d bytes: %w", i, len(r.GetPayload().GetBody()), err)
		}
	}
	if err := both.CloseSend(); err != nil {
		return err
	}
	if _, err := both.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("stream: end: %w", err)
	}
	if got := both.Trailer().Get("in-trailer"); len(got) != 1 {
		return fmt.Errorf("stream: trailers %v", both.Trailer())
	}
	return nil
}

// manyStreams has 200 streams open at once on one connection, which is more than many servers allow.
func manyStreams(ctx context.Context, t *testing.T, c rpc.TestServiceClient) {
	t.Helper()
	const n = 200
	var open []rpc.TestService_FullDuplexCallClient
	for i := range n {
		s, err := c.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
		if err := s.Send(&rpc.StreamingOutputCallRequest{Payload: grpctest.Filled(byte(i), 1000+i)}); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i, s := range open { // each has got its answer while all the others are open
		wg.Go(func() {
			r, err := s.Recv()
			if err != nil || !bytes.Equal(r.GetPayload().GetBody(), grpctest.Filled(byte(i), 1000+i).GetBody()) {
				t.Errorf("stream %d of %d: %d bytes, %v", i, n, len(r.GetPayload().GetBody()), err)
			}
		})
	}
	wg.Wait()
	for _, s := range open {
		wg.Go(func() {
			s.CloseSend()
			if _, err := s.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("end of stream: %v", err)
			}
		})
	}
	wg.Wait()
}

// killedServer ends a server while a stream is open: the client learns from the mesh what has happened. When the server
// is back the same client goes on.
func killedServer(t *testing.T, w *town) {
	for _, way := range []func(uint16) path{w.far, w.near} {
		_, s, port := serveCalls(t, w, 0)
		p := way(port)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		c := dialCalls(t, p)
		both, err := c.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := both.Send(&rpc.StreamingOutputCallRequest{Payload: grpctest.Filled('k', 10)}); err != nil {
			t.Fatal(err)
		}
		if _, err := both.Recv(); err != nil {
			t.Fatal(err)
		}
		s.Stop()
		_, err = both.Recv()
		if status.Code(err) != codes.Unavailable || !slices.Equal(both.Trailer().Get("conduit-reason"), []string{"upstream-reset"}) {
			t.Errorf("%s: stream to a killed server: %v, trailers %v; want Unavailable for upstream-reset", p.name, err, both.Trailer())
		}
		var header metadata.MD
		_, err = c.UnaryCall(ctx, &rpc.SimpleRequest{}, grpc.Header(&header), grpc.Trailer(&header))
		if status.Code(err) != codes.Unavailable || !slices.Equal(header.Get("conduit-reason"), []string{"connect-failed"}) {
			t.Errorf("%s: call to a killed server: %v, fields %v; want Unavailable for connect-failed", p.name, err, header)
		}
		serveCalls(t, w, port)
		testnet.Eventually(t, 20*time.Second, func(ctx context.Context) error {
			_, err := c.UnaryCall(ctx, &rpc.SimpleRequest{})
			return err
		})
		cancel()
	}
}
