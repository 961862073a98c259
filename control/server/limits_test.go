package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"
	"conduit.io/conduit/api/identityv1/identityv1connect"
	"conduit.io/conduit/api/nodev1/nodev1connect"
	"conduit.io/conduit/control/access"
)

// door knows the token "viewer" alone, and everybody it knows has every right.
type door struct{}

func (door) Authenticate(_ context.Context, token string) (access.Caller, error) {
	if token != "viewer" {
		return access.Caller{}, access.ErrUnauthenticated
	}
	return access.Caller{User: "viewer"}, nil
}

func (door) Authorize(context.Context, access.Caller, string) (bool, error) { return true, nil }

// slow answers Lookup when it is told to.
type slow struct {
	discoveryv1connect.UnimplementedDiscoveryServiceHandler
	came chan struct{}
	end  chan struct{}
}

func (s slow) Lookup(context.Context, *discoveryv1.LookupRequest) (*discoveryv1.LookupResponse, error) {
	s.came <- struct{}{}
	<-s.end
	return &discoveryv1.LookupResponse{}, nil
}

type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *text) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *text) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serve is a server of d over HTTP/2, what it logs, and a client.
func serve(t *testing.T, d discoveryv1connect.DiscoveryServiceHandler) (*Server, *text, *httptest.Server) {
	t.Helper()
	log := &text{}
	s, err := New(Config{TLS: &tls.Config{MinVersion: tls.VersionTLS13}, Authn: door{}, Authz: door{}, Discovery: d,
		Identity: identityv1connect.UnimplementedIdentityServiceHandler{}, Nodes: nodev1connect.UnimplementedNodeServiceHandler{},
		Drain: make(chan struct{}), Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewUnstartedServer(s.handler)
	h.EnableHTTP2 = true
	h.StartTLS()
	t.Cleanup(h.Close)
	return s, log, h
}

func post(t *testing.T, h *httptest.Server, path, token string, body io.Reader) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // instead of the test's own
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := h.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// TestStrangersAreNotListenedTo: whoever has no right is told so before the body is there, so that nothing of it is kept; and each is
// counted, and logged once.
func TestStrangersAreNotListenedTo(t *testing.T) {
	const look, certify = discoveryv1connect.DiscoveryServiceLookupProcedure, identityv1connect.IdentityServiceCertifyProcedure
	s, log, h := serve(t, discoveryv1connect.UnimplementedDiscoveryServiceHandler{})
	for _, tt := range []struct {
		path, token string
		status      int
		times       int
	}{{look, "", 401, 3}, {certify, "forged", 401, 3}, {certify, "viewer", 403, 3}} {
		for range tt.times {
			body, never := io.Pipe() // it never ends, and nothing of it comes
			if status, text := post(t, h, tt.path, tt.token, body); status != tt.status {
				t.Errorf("%s with token %q: %d %s, want %d", tt.path, tt.token, status, text, tt.status)
			}
			never.Close()
		}
	}
	if n := strings.Count(log.String(), "call refused"); n != 3 {
		t.Errorf("%d lines were logged, want one for each kind:\n%s", n, log.String())
	}
	if !strings.Contains(log.String(), "from=127.0.0.1") {
		t.Errorf("the log does not say where strangers are:\n%s", log.String())
	}
	var metrics bytes.Buffer
	s.Write(&metrics)
	for _, want := range []string{look + `",code="unauthenticated"} 3`, certify + `",code="unauthenticated"} 3`, certify + `",code="permission_denied"} 3`} {
		if !strings.Contains(metrics.String(), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if status, _ := post(t, h, "/conduit.discovery.v1.DiscoveryService/Nothing", "", strings.NewReader("{}")); status != 404 {
		t.Errorf("what there is not: %d", status)
	}
}

// TestPublicCallsAreSmall: what needs no token takes next to nothing.
func TestPublicCallsAreSmall(t *testing.T) {
	_, _, h := serve(t, discoveryv1connect.UnimplementedDiscoveryServiceHandler{})
	large := func() io.Reader { return strings.NewReader(`{"x":"` + strings.Repeat("1", maxPublic) + `"}`) }
	for _, path := range []string{identityv1connect.IdentityServiceGetRootsProcedure, "/" + healthName + "/Check"} {
		if status, text := post(t, h, path, "", large()); status != 429 || !strings.Contains(text, "resource_exhausted") {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}

// TestCallsOfOneCaller: one caller cannot have more under way than maxCalls, and has them again afterwards.
func TestCallsOfOneCaller(t *testing.T) {
	d := slow{came: make(chan struct{}), end: make(chan struct{})}
	s, _, h := serve(t, d)
	const look = discoveryv1connect.DiscoveryServiceLookupProcedure
	var calls sync.WaitGroup
	for range maxCalls {
		calls.Go(func() {
			if status, text := post(t, h, look, "viewer", strings.NewReader("{}")); status != 200 {
				t.Errorf("%d %s", status, text)
			}
		})
		<-d.came
	}
	if status, text := post(t, h, look, "viewer", strings.NewReader("{}")); status != 429 || !strings.Contains(text, "resource_exhausted") {
		t.Errorf("one more: %d %s", status, text)
	}
	close(d.end)
	calls.Wait()
	if len(s.crowd.n) != 0 {
		t.Errorf("calls are kept: %v", s.crowd.n)
	}
	again := make(chan struct{})
	go func() { <-d.came; close(again) }()
	if status, text := post(t, h, look, "viewer", strings.NewReader("{}")); status != 200 {
		t.Errorf("afterwards: %d %s", status, text)
	}
	<-again
}
