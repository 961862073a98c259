package proxy_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// echoService is a gRPC server with calls of every kind.
type echoService struct {
	testpb.UnimplementedTestServiceServer
}

func (echoService) UnaryCall(ctx context.Context, r *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if s := r.GetResponseStatus(); s.GetCode() != 0 {
		return nil, status.Error(codes.Code(s.GetCode()), s.GetMessage())
	}
	md, _ := metadata.FromIncomingContext(ctx)
	grpc.SetTrailer(ctx, metadata.Pairs("seen", strings.Join(md.Get("sent"), ",")))
	return &testpb.SimpleResponse{Payload: r.GetPayload()}, nil
}

func (echoService) FullDuplexCall(s testpb.TestService_FullDuplexCallServer) error {
	for {
		r, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

func serveGRPC(t *testing.T) string {
	t.Helper()
	l := listen(t)
	s := grpc.NewServer()
	testpb.RegisterTestServiceServer(s, echoService{})
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func dialGRPC(t *testing.T, addr string) testpb.TestServiceClient {
	t.Helper()
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return testpb.NewTestServiceClient(c)
}

func payload(n int) *testpb.Payload { return &testpb.Payload{Body: []byte(strings.Repeat("g", n))} }

func TestGRPC(t *testing.T) {
	up := serveGRPC(t)
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "detect"), proxyTo(up, "http2")}, "admin": "127.0.0.1:0"})
	for _, addr := range p.addrs {
		checkGRPC(t, dialGRPC(t, addr))
	}
	res, err := client(t, false).Get("http://" + p.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	for _, w := range []string{
		`classification="success",class="2xx",grpc_status_code="0",reason=""} 82`,
		`classification="success",class="2xx",grpc_status_code="5",reason=""} 2`,  // NotFound answers the client's own mistake
		`classification="failure",class="2xx",grpc_status_code="14",reason=""} 2`, // Unavailable
	} {
		if w = `dst="` + up + `",protocol="grpc",tls="none",route="default",` + w; !strings.Contains(string(b), w) {
			t.Errorf("metrics lack %s:\n%s", w, grep(string(b), "response_total"))
		}
	}
}

func grep(s, word string) string {
	var out []string
	for l := range strings.Lines(s) {
		if strings.Contains(l, word) {
			out = append(out, l)
		}
	}
	return strings.Join(out, "")
}

// checkGRPC makes 40 unary calls, one stream, and two calls that fail.
func checkGRPC(t *testing.T, c testpb.TestServiceClient) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			var trailer metadata.MD
			n := i * i * 100
			ctx := metadata.AppendToOutgoingContext(ctx, "sent", fmt.Sprint(i))
			r, err := c.UnaryCall(ctx, &testpb.SimpleRequest{Payload: payload(n)}, grpc.Trailer(&trailer))
			if err != nil || len(r.GetPayload().GetBody()) != n || strings.Join(trailer.Get("seen"), "") != fmt.Sprint(i) {
				t.Errorf("unary %d: %d bytes, trailer %v, %v", i, len(r.GetPayload().GetBody()), trailer, err)
			}
		})
	}
	wg.Wait()
	s, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 { // ping-pong: nothing may be held back
		if err := s.Send(&testpb.StreamingOutputCallRequest{Payload: payload(i * 10)}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Recv()
		if err != nil || len(r.GetPayload().GetBody()) != i*10 {
			t.Fatalf("stream message %d: %d bytes, %v", i, len(r.GetPayload().GetBody()), err)
		}
	}
	s.CloseSend()
	if _, err := s.Recv(); err != io.EOF {
		t.Errorf("end of stream: %v", err)
	}
	for _, code := range []codes.Code{codes.NotFound, codes.Unavailable} {
		_, err := c.UnaryCall(ctx, &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: int32(code), Message: "as asked: 100%"}})
		if st, _ := status.FromError(err); st.Code() != code || st.Message() != "as asked: 100%" {
			t.Errorf("status %v, want %v", err, code)
		}
	}
}

// A failure of the mesh reaches a gRPC client as a status with its reason.
func TestGRPCUpstreamDown(t *testing.T) {
	l := listen(t)
	up := l.Addr().String()
	l.Close()
	p := startProxy(t, config{"listeners": []any{proxyTo(up, "http2")}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var header metadata.MD
	_, err := dialGRPC(t, p.addrs[0]).UnaryCall(ctx, &testpb.SimpleRequest{}, grpc.Header(&header), grpc.Trailer(&header))
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
	if strings.Join(header.Get("conduit-reason"), "") != "connect-failed" {
		t.Errorf("reason %v", header)
	}
}
