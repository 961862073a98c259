package differential

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	rpc "google.golang.org/grpc/interop/grpc_testing"

	"conduit.io/conduit/tests/grpctest"
	"conduit.io/conduit/tests/tcptest"
)

// The procedures of a server that speaks gRPC, gRPC-Web and Connect, over HTTP/1.1 and HTTP/2.
const (
	procUnary  = "/grpc.testing.TestService/UnaryCall"
	procOut    = "/grpc.testing.TestService/StreamingOutputCall"
	procIn     = "/grpc.testing.TestService/StreamingInputCall"
	procDuplex = "/grpc.testing.TestService/FullDuplexCall"
)

func webUnary(_ context.Context, r *connect.Request[rpc.SimpleRequest]) (*connect.Response[rpc.SimpleResponse], error) {
	if e := r.Msg.GetResponseStatus(); e.GetCode() != 0 {
		err := connect.NewError(connect.Code(e.GetCode()), errors.New(e.GetMessage()))
		d, derr := connect.NewErrorDetail(&rpc.EchoStatus{Code: 7, Message: "a detail"})
		if derr != nil {
			return nil, derr
		}
		err.AddDetail(d)
		err.Meta().Set("In-Trailer", "t")
		return nil, err
	}
	res := connect.NewResponse(&rpc.SimpleResponse{Payload: r.Msg.GetPayload()})
	res.Header().Set("In-Header", strings.Join(r.Header().Values("Sent"), ","))
	res.Header().Set("Bytes-Bin", r.Header().Get("Sent-Bin"))
	res.Trailer().Set("In-Trailer", "t")
	return res, nil
}

func webOut(_ context.Context, r *connect.Request[rpc.StreamingOutputCallRequest], s *connect.ServerStream[rpc.StreamingOutputCallResponse]) error {
	for i, p := range r.Msg.GetResponseParameters() {
		if err := s.Send(&rpc.StreamingOutputCallResponse{Payload: grpctest.Filled(byte(i), int(p.GetSize()))}); err != nil {
			return err
		}
	}
	return connect.NewError(connect.CodeFailedPrecondition, errors.New("at the end"))
}

func webIn(_ context.Context, s *connect.ClientStream[rpc.StreamingInputCallRequest]) (*connect.Response[rpc.StreamingInputCallResponse], error) {
	total := 0
	for s.Receive() {
		total += len(s.Msg().GetPayload().GetBody())
	}
	return connect.NewResponse(&rpc.StreamingInputCallResponse{AggregatedPayloadSize: int32(total)}), s.Err()
}

func webDuplex(_ context.Context, s *connect.BidiStream[rpc.StreamingOutputCallRequest, rpc.StreamingOutputCallResponse]) error {
	for {
		r, err := s.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&rpc.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

func serveWeb(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(procUnary, connect.NewUnaryHandler(procUnary, webUnary))
	mux.Handle(procOut, connect.NewServerStreamHandler(procOut, webOut))
	mux.Handle(procIn, connect.NewClientStreamHandler(procIn, webIn))
	mux.Handle(procDuplex, connect.NewBidiStreamHandler(procDuplex, webDuplex))
	return serveHTTP(t, mux)
}

// serveHTTP serves h over HTTP/1.1 and HTTP/2.
func serveHTTP(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: h, Protocols: &p}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

func httpClient(t *testing.T, protocol string) *http.Client {
	t.Helper()
	var p http.Protocols
	p.SetHTTP1(protocol == "http1")
	p.SetUnencryptedHTTP2(protocol == "http2")
	tr := &http.Transport{Protocols: &p, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// dialects are what a client may speak; gRPC itself needs HTTP/2 all the way.
var dialects = map[string]connect.ClientOption{"grpc-web": connect.WithGRPCWeb(), "connect": connect.WithClientOptions(), "grpc": connect.WithGRPC()}

// TestGRPCWeb has clients and servers of gRPC-Web, of Connect, and of gRPC, of another make than grpc-go.
func TestGRPCWeb(t *testing.T) {
	addr := serveWeb(t)
	ways := append(paths(t, addr, addr), path{in: "http1", out: "http1", addr: addr}, path{in: "http2", out: "http2", addr: addr})
	for _, p := range ways {
		for name, dialect := range dialects {
			if name == "grpc" && (p.in == "http1" || p.out == "http1") {
				continue
			}
			t.Run(fmt.Sprintf("%s over %s", name, p), func(t *testing.T) {
				c := httpClient(t, p.in)
				webCalls(t, connect.NewClient[rpc.SimpleRequest, rpc.SimpleResponse](c, "http://"+p.addr+procUnary, dialect))
				webCalls(t, connect.NewClient[rpc.SimpleRequest, rpc.SimpleResponse](c, "http://"+p.addr+procUnary, dialect, connect.WithSendGzip()))
				webStreams(t, p, c, dialect)
			})
		}
	}
}

func webCalls(t *testing.T, c *connect.Client[rpc.SimpleRequest, rpc.SimpleResponse]) {
	for _, size := range []int{0, 100, 500_000} {
		req := connect.NewRequest(&rpc.SimpleRequest{Payload: grpctest.Filled('w', size)})
		req.Header()["Sent"] = []string{"one", "two"}
		req.Header().Set("Sent-Bin", "AP8=")
		r, err := c.CallUnary(t.Context(), req)
		if err != nil || !bytes.Equal(r.Msg.GetPayload().GetBody(), grpctest.Filled('w', size).GetBody()) {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if r.Header().Get("In-Header") != "one,two" || r.Header().Get("Bytes-Bin") != "AP8=" || r.Trailer().Get("In-Trailer") != "t" {
			t.Errorf("header %v, trailer %v", r.Header(), r.Trailer())
		}
	}
	_, err := c.CallUnary(t.Context(), connect.NewRequest(&rpc.SimpleRequest{ResponseStatus: &rpc.EchoStatus{Code: 5, Message: "50% of it: ü\n"}}))
	var e *connect.Error
	if !errors.As(err, &e) || e.Code() != connect.CodeNotFound || e.Message() != "50% of it: ü\n" || len(e.Details()) != 1 || e.Meta().Get("In-Trailer") != "t" {
		t.Errorf("an error of the server: %v", err)
	}
}

func webStreams(t *testing.T, p path, c *http.Client, dialect connect.ClientOption) {
	ask := &rpc.StreamingOutputCallRequest{}
	for i := range 50 {
		ask.ResponseParameters = append(ask.ResponseParameters, &rpc.ResponseParameters{Size: int32(i * 100)})
	}
	out, err := connect.NewClient[rpc.StreamingOutputCallRequest, rpc.StreamingOutputCallResponse](c, "http://"+p.addr+procOut, dialect).
		CallServerStream(t.Context(), connect.NewRequest(ask))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; out.Receive(); n++ {
		if len(out.Msg().GetPayload().GetBody()) != n*100 {
			t.Fatalf("message %d has %d bytes", n, len(out.Msg().GetPayload().GetBody()))
		}
	}
	if n != 50 || connect.CodeOf(out.Err()) != connect.CodeFailedPrecondition {
		t.Errorf("%d messages, then %v", n, out.Err())
	}
	in := connect.NewClient[rpc.StreamingInputCallRequest, rpc.StreamingInputCallResponse](c, "http://"+p.addr+procIn, dialect).CallClientStream(t.Context())
	for i := range 50 {
		if err := in.Send(&rpc.StreamingInputCallRequest{Payload: grpctest.Filled('i', i*100)}); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := in.CloseAndReceive(); err != nil || r.Msg.GetAggregatedPayloadSize() != 122_500 {
		t.Errorf("client stream: %v", err)
	}
	if p.in == "http1" || p.out == "http1" {
		return // net/http does not read and write at once there
	}
	both := connect.NewClient[rpc.StreamingOutputCallRequest, rpc.StreamingOutputCallResponse](c, "http://"+p.addr+procDuplex, dialect).CallBidiStream(t.Context())
	for i := range 50 {
		if err := both.Send(&rpc.StreamingOutputCallRequest{Payload: grpctest.Filled('b', i*10)}); err != nil {
			t.Fatal(err)
		}
		if r, err := both.Receive(); err != nil || len(r.GetPayload().GetBody()) != i*10 {
			t.Fatalf("both: message %d: %v", i, err)
		}
	}
	both.CloseRequest()
	if _, err := both.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("both: %v at the end", err)
	}
	both.CloseResponse()
}

// TestGRPCWebFailures: what the mesh has to say, a client of gRPC-Web or Connect hears as a code with a reason.
func TestGRPCWebFailures(t *testing.T) {
	empty := "\x00\x00\x00\x00\x02\x0a\x00" // a response with an empty payload
	webHead := "HTTP/1.1 200 OK\r\nContent-Type: application/grpc-web+proto\r\nTransfer-Encoding: chunked\r\n\r\n"
	half := func(answer string) string {
		return tcptest.Serve(t, func(c net.Conn) {
			r := bufio.NewReader(c)
			_, fs, err := readHead(r)
			if err == nil && readBody(r, &message{fields: fs}, false) == nil {
				io.WriteString(c, answer)
				linger(c)
			}
		})
	}
	for _, tt := range []struct{ name, addr, reason string }{
		{"refused", nobody(t), "connect-failed"},
		{"closed before the answer", half(""), "upstream-reset"},
		{"closed between messages", half(webHead + "7\r\n" + empty + "\r\n"), "upstream-reset"},
	} {
		for _, p := range paths(t, tt.addr, tt.addr) {
			if p.out == "http2" {
				continue
			}
			for _, dialect := range []string{"grpc-web", "connect"} {
				if dialect == "connect" && strings.HasSuffix(tt.name, "messages") {
					continue
				}
				c := connect.NewClient[rpc.SimpleRequest, rpc.SimpleResponse](httpClient(t, p.in), "http://"+p.addr+procUnary, dialects[dialect])
				_, err := c.CallUnary(t.Context(), connect.NewRequest(&rpc.SimpleRequest{}))
				var e *connect.Error
				told := errors.As(err, &e) && (dialect == "connect" || slices.Contains(e.Meta().Values("Conduit-Reason"), tt.reason))
				if !told || e.Code() != connect.CodeUnavailable { // Connect maps the HTTP status, and keeps nothing else
					t.Errorf("%s, %s over %s: %v", tt.name, dialect, p, err)
				}
			}
		}
	}
}

// TestGRPCWebText looks at the answers to a client of the text form, which browsers speak, on the wire.
func TestGRPCWebText(t *testing.T) {
	b := newBackend(t)
	frame := base64.StdEncoding.EncodeToString([]byte("\x00\x00\x00\x00\x02\x0a\x00"))
	trailer := base64.StdEncoding.EncodeToString([]byte("\x80\x00\x00\x00\x0fgrpc-status: 5\r\n"))
	head := field{"Content-Type", "application/grpc-web-text+proto"}
	req := request{method: "POST", scheme: "http", authority: "h", path: procUnary, minor: 1, framing: length, body: []byte(frame),
		fields: []field{{"Content-Type", "application/grpc-web-text"}, {"X-Grpc-Web", "1"}}}
	for _, p := range paths(t, b.h1, b.h2) {
		whole := exchange{req: req, res: response{status: 200, fields: []field{head}, framing: chunked, body: []byte(frame + trailer), cuts: []int{5}}}
		cut := exchange{req: req, res: response{status: 200, fields: []field{head}, framing: chunked, body: []byte(frame + "xx"), truncate: len(frame) + 1}}
		if p.out == "http2" { // there, a server that resets a call has said how it ends
			cut.res = whole.res
		}
		for _, x := range []exchange{whole, cut} {
			out, err := play(b, p.in, p.addr, []exchange{x})
			if err != nil {
				t.Errorf("%s: %v", p, err)
				continue
			}
			got := out[0].got
			if x.res.truncate == 0 {
				if string(got.body) != frame+trailer {
					t.Errorf("%s: %q", p, got.body)
				}
				continue
			}
			rest, ok := strings.CutPrefix(string(got.body), frame)
			end, err := base64.StdEncoding.DecodeString(rest)
			if !ok || err != nil || got.end != "whole" || !bytes.HasPrefix(end, []byte{0x80}) || !bytes.Contains(end, []byte("grpc-status: 14\r\n")) ||
				!bytes.Contains(end, []byte("conduit-reason: upstream-reset\r\n")) {
				t.Errorf("%s: cut off: %q (%q), %s, %v", p, got.body, end, got.end, err)
			}
		}
	}
}

// TestGRPCWebMetrics: calls are counted by the status that is in their body.
func TestGRPCWebMetrics(t *testing.T) {
	p := startProxy(t, config{"address": "127.0.0.1:0", "upstream": serveWeb(t), "protocol": "http1"})
	c := connect.NewClient[rpc.SimpleRequest, rpc.SimpleResponse](httpClient(t, "http1"), "http://"+p.addrs[0]+procUnary, connect.WithGRPCWeb(),
		connect.WithAcceptCompression("gzip", nil, nil)) // it would compress the status, too
	for _, code := range []int32{0, 0, 5, 13} {
		c.CallUnary(t.Context(), connect.NewRequest(&rpc.SimpleRequest{ResponseStatus: &rpc.EchoStatus{Code: code}}))
	}
	p.counts(t, `response_total{`, `protocol="grpc"`, `classification="success"`, `grpc_status_code="0"`, `} 2`)
	p.counts(t, `response_total{`, `protocol="grpc"`, `classification="success"`, `grpc_status_code="5"`, `} 1`)
	p.counts(t, `response_total{`, `protocol="grpc"`, `classification="failure"`, `grpc_status_code="13"`, `} 1`)
}
