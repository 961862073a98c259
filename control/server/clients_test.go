package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"
	"conduit.io/conduit/api/nodev1/nodev1connect"
	"conduit.io/conduit/control/access"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

// answers knows one address.
type answers struct {
	discoveryv1connect.UnimplementedDiscoveryServiceHandler
}

func (answers) Lookup(_ context.Context, req *discoveryv1.LookupRequest) (*discoveryv1.LookupResponse, error) {
	if len(req.Addresses) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("no address"))
	}
	return &discoveryv1.LookupResponse{Position: &discoveryv1.Position{Epoch: req.Addresses[0]}}, nil
}

// dial is grpc-go's client of the server.
func dial(t *testing.T, h *httptest.Server) *grpc.ClientConn {
	t.Helper()
	cfg := h.Client().Transport.(*http.Transport).TLSClientConfig
	conn, err := grpc.NewClient(h.Listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestClients: grpc-go, and clients of connect-go by gRPC, gRPC-Web and JSON, have the same answers and errors.
func TestClients(t *testing.T) {
	_, _, h := serve(t, answers{})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer viewer")
	plain := func(addresses ...string) (*discoveryv1.LookupResponse, error) {
		res := &discoveryv1.LookupResponse{}
		return res, dial(t, h).Invoke(ctx, discoveryv1connect.DiscoveryServiceLookupProcedure, &discoveryv1.LookupRequest{Addresses: addresses}, res)
	}
	if res, err := plain("10.1.0.1"); err != nil || res.Position.GetEpoch() != "10.1.0.1" {
		t.Errorf("grpc-go: %v, %v", res, err)
	}
	if _, err := plain(); err == nil || !strings.Contains(err.Error(), "InvalidArgument desc = no address") {
		t.Errorf("grpc-go, without an address: %v", err)
	}
	for name, option := range map[string]connect.ClientOption{"gRPC": connect.WithGRPC(), "gRPC-Web": connect.WithGRPCWeb(), "JSON": connect.WithProtoJSON()} {
		client := discoveryv1connect.NewDiscoveryServiceClient(h.Client(), h.URL, option)
		ctx, info := connect.NewClientContext(t.Context())
		info.RequestHeader().Set("Authorization", "Bearer viewer")
		if res, err := client.Lookup(ctx, &discoveryv1.LookupRequest{Addresses: []string{"10.1.0.1"}}); err != nil || res.Position.GetEpoch() != "10.1.0.1" {
			t.Errorf("%s: %v, %v", name, res, err)
		}
		if _, err := client.Lookup(ctx, &discoveryv1.LookupRequest{}); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "no address") {
			t.Errorf("%s, without an address: %v", name, err)
		}
	}
}

// TestPagesOfOtherOrigins: a browser asks first, and gives the answer to the page; without a token of the page's own there is none.
func TestPagesOfOtherOrigins(t *testing.T) {
	_, _, h := serve(t, answers{})
	ask := func(method string, header map[string]string, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, h.URL+discoveryv1connect.DiscoveryServiceLookupProcedure, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", "https://dashboard.example")
		for k, v := range header {
			req.Header.Set(k, v)
		}
		res, err := h.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Get("Access-Control-Allow-Origin"); got != "*" || res.Header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s: the origin %q is allowed, with credentials %q", method, got, res.Header.Get("Access-Control-Allow-Credentials"))
		}
		return res
	}
	res := ask(http.MethodOptions, map[string]string{"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}, "")
	if allowed := strings.ToLower(res.Header.Get("Access-Control-Allow-Headers")); res.StatusCode != 204 || res.Header.Get("Access-Control-Allow-Methods") != "POST" ||
		!strings.Contains(allowed, "authorization") || !strings.Contains(allowed, "content-type") || !strings.Contains(allowed, "connect-protocol-version") {
		t.Errorf("asked first: %d %v", res.StatusCode, res.Header)
	}
	json := map[string]string{"Content-Type": "application/json"}
	if res := ask(http.MethodPost, json, `{"addresses":["10.1.0.1"]}`); res.StatusCode != 401 {
		t.Errorf("without a token: %d", res.StatusCode)
	}
	json["Authorization"] = "Bearer viewer"
	if res := ask(http.MethodPost, json, `{"addresses":["10.1.0.1"]}`); res.StatusCode != 200 {
		t.Errorf("with a token: %d", res.StatusCode)
	}
	if res := ask(http.MethodOptions, nil, ""); res.StatusCode == 204 {
		t.Error("what asks for nothing was answered")
	}
}

// TestReflection: tools such as grpcurl find every service, and the description of its messages, without a token.
func TestReflection(t *testing.T) {
	_, _, h := serve(t, answers{})
	stream, err := reflectionpb.NewServerReflectionClient(dial(t, h)).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(req *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
		t.Helper()
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
		res, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	var names []string
	for _, s := range ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{ListServices: "*"}}).
		GetListServicesResponse().GetService() {
		names = append(names, s.Name)
	}
	for _, want := range []string{"conduit.discovery.v1.DiscoveryService", "conduit.identity.v1.IdentityService", nodev1connect.NodeServiceName, healthName} {
		if !slices.Contains(names, want) {
			t.Errorf("listed are %v, not %s", names, want)
		}
		files := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: want}}).
			GetFileDescriptorResponse().GetFileDescriptorProto()
		described := slices.ContainsFunc(files, func(raw []byte) bool {
			var file descriptorpb.FileDescriptorProto
			return proto.Unmarshal(raw, &file) == nil && slices.ContainsFunc(file.Service, func(s *descriptorpb.ServiceDescriptorProto) bool {
				return file.GetPackage()+"."+s.GetName() == want && len(s.Method) > 0
			})
		})
		if !described {
			t.Errorf("%s is not described", want)
		}
	}
}

// TestHealth: as the gRPC Health Checking Protocol says it.
func TestHealth(t *testing.T) {
	s, _, h := serve(t, answers{})
	client := healthpb.NewHealthClient(dial(t, h))
	for service, want := range map[string]healthpb.HealthCheckResponse_ServingStatus{"": healthpb.HealthCheckResponse_SERVING,
		"conduit.discovery.v1.DiscoveryService": healthpb.HealthCheckResponse_SERVING, "nobody's": healthpb.HealthCheckResponse_UNKNOWN} {
		res, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if res.GetStatus() != want || (err == nil) != (want == healthpb.HealthCheckResponse_SERVING) {
			t.Errorf("%q: %v, %v", service, res, err)
		}
	}
	stream, err := client.Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := stream.Recv(); err != nil || res.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("watched: %v, %v", res, err)
	}
	close(s.cfg.Drain)
	for err == nil {
		var res *healthpb.HealthCheckResponse
		if res, err = stream.Recv(); err == nil && res.Status != healthpb.HealthCheckResponse_NOT_SERVING {
			t.Errorf("while it drains: %v", res)
		}
	}
	if !strings.Contains(err.Error(), "Unavailable") {
		t.Errorf("the watch ended with %v", err)
	}
}

// TestMessagesThatCannotBeTaken: what is too large, or no message at all, is refused, counted, and each kind of a caller logged once.
func TestMessagesThatCannotBeTaken(t *testing.T) {
	s, log, h := serve(t, answers{})
	const look = discoveryv1connect.DiscoveryServiceLookupProcedure
	raw := func(contentType string, body []byte) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL+look, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		req.Header.Set("Authorization", "Bearer viewer")
		res, err := h.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return res
	}
	large := append([]byte{0, 0, 0, 0, 0}, make([]byte, maxMessage+1)...)
	binary.BigEndian.PutUint32(large[1:], maxMessage+1)
	for range 3 {
		if res := raw("application/json", []byte(`{"addresses": 7`)); res.StatusCode != 400 {
			t.Errorf("no JSON: %d", res.StatusCode)
		}
		if res := raw("application/json", bytes.Repeat([]byte(" "), maxMessage+1)); res.StatusCode != 429 {
			t.Errorf("too much JSON: %d", res.StatusCode)
		}
		if res := raw("application/grpc", large); res.Trailer.Get("Grpc-Status") != "8" {
			t.Errorf("a gRPC message that is too large: %v", res.Trailer)
		}
		if res := raw("text/plain", nil); res.StatusCode != 415 {
			t.Errorf("no protocol at all: %d", res.StatusCode)
		}
	}
	var metrics bytes.Buffer
	s.Write(&metrics)
	for _, want := range []string{`code="invalid_argument"} 3`, `code="resource_exhausted"} 6`, `code="unimplemented"} 3`, `code="ok"} 0`} {
		if !strings.Contains(metrics.String(), look+`",`+want+"\n") {
			t.Errorf("metrics lack %s:\n%s", want, metrics.String())
		}
	}
	if n := strings.Count(log.String(), "call refused"); n != 3 {
		t.Errorf("%d lines were logged, want one for each kind:\n%s", n, log.String())
	}
}

// TestStrangersHaveFewStreams: what needs no token may stay open, and so only so many may.
func TestStrangersHaveFewStreams(t *testing.T) {
	_, _, h := serve(t, answers{})
	conn := dial(t, h)
	open := func() error {
		stream, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	for range maxOpen {
		if err := open(); err != nil {
			t.Fatal(err)
		}
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "ResourceExhausted") {
		t.Errorf("one more: %v", err)
	}
	if status, text := post(t, h, healthCheck, "", strings.NewReader("{}")); status != 200 {
		t.Errorf("a question from the same address: %d %s", status, text)
	}
	if status, text := post(t, h, discoveryv1connect.DiscoveryServiceLookupProcedure, "viewer", strings.NewReader(`{"addresses":["10.1.0.1"]}`)); status != 200 {
		t.Errorf("who has a token: %d %s", status, text)
	}
}

// TestStrangersTogether: neither have all of them together more than they may, from however many addresses they call.
func TestStrangersTogether(t *testing.T) {
	s, _, _ := serve(t, answers{})
	from := func(address string) (func(), error) {
		r := httptest.NewRequest(http.MethodPost, healthWatch, nil)
		r.RemoteAddr = address + ":1"
		leave, err := s.admit(r, access.Caller{})
		if err != nil {
			return nil, err
		}
		return leave, nil
	}
	var leaves []func()
	for i := range maxStrangers {
		leave, err := from(fmt.Sprintf("10.0.%d.%d", i/200, i%200))
		if err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
		leaves = append(leaves, leave)
	}
	if _, err := from("10.9.9.9"); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	for _, leave := range leaves {
		leave()
	}
	if len(s.crowd.n) != 0 {
		t.Errorf("calls are kept: %v", s.crowd.n)
	}
}
