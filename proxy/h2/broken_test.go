package h2_test

import (
	"strings"
	"testing"

	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2"
)

// A gRPC response that breaks off ends with trailers that say why; what had come before is delivered first. Anything else
// that breaks off is reset.
func TestBrokenResponse(t *testing.T) {
	for _, contentType := range []string{"application/grpc+proto", "text/plain"} {
		r := newRig(false)
		r.client.Headers(1, false, with(postReq, "content-type", contentType)...)
		r.n.Run()
		r.app.Headers(1, false, ":status", "200", "content-type", contentType)
		for range 3 {
			r.app.Body(1, false, []byte(strings.Repeat("x", 16_000)))
		}
		r.n.Run()
		r.app.C.Abort()
		r.n.Run()
		b, _ := r.client.Bytes(1)
		rst := r.client.Find(http2.FrameRSTStream, 1)
		if len(rst) != 1 || r.h.Open != 0 || r.h.Log[0].Reason != mesh.ReasonUpstreamReset {
			t.Fatalf("%s: resets %v, log %v", contentType, rst, r.h.Log)
		}
		if contentType == "text/plain" {
			if rst[0].Code != http2.ErrCodeInternal {
				t.Errorf("reset with %v", rst[0].Code)
			}
			continue
		}
		if len(b) != 48_000 || r.client.Field(1, 1, "grpc-status") != "14" || r.client.Field(1, 1, "conduit-reason") != "upstream-reset" {
			t.Errorf("%d bytes, then %v", len(b), r.client.Find(http2.FrameHeaders, 1))
		}
		if rst[0].Code != http2.ErrCodeNo { // the rest of the request is not wanted, and nobody is to blame
			t.Errorf("reset with %v", rst[0].Code)
		}
		r.check(t)
	}
}

// What the client's window does not take yet comes before the trailers all the same, and the upload that goes on meanwhile
// is thrown away without stalling the connection.
func TestBrokenResponseWaitsForWindow(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, with(postReq, "content-type", "application/grpc")...)
	r.n.Run()
	r.app.Headers(1, false, ":status", "200", "content-type", "application/grpc")
	chunk := []byte(strings.Repeat("x", 16_000))
	for range 5 {
		r.app.Body(1, false, chunk)
	}
	r.n.Run()
	r.app.C.Abort()
	r.n.Run()
	for range 40 { // ten times the stream's window
		r.client.Body(1, false, chunk)
		r.n.Run()
	}
	if len(r.client.Find(http2.FrameHeaders, 1)) != 1 || r.h.Open != 1 {
		t.Fatalf("the trailers overtook the body: %v", r.client.Find(http2.FrameHeaders, 1))
	}
	if len(r.client.Find(http2.FrameWindowUpdate, 0)) == 0 {
		t.Error("the connection's window is not opened again")
	}
	_ = r.client.F.WriteWindowUpdate(1, 1<<20)
	_ = r.client.F.WriteWindowUpdate(0, 1<<20)
	r.client.Flush()
	r.n.Run()
	if b, _ := r.client.Bytes(1); len(b) != 5*len(chunk) || r.client.Field(1, 1, "grpc-status") != "14" || r.h.Open != 0 {
		t.Errorf("%d bytes, open %d, then %v", len(b), r.h.Open, r.client.Find(http2.FrameHeaders, 1))
	}
}

// A tunnel that has ended in both directions outlives its connection until the upstream has taken the rest; only then
// the owner hears of the connection's end, once.
func TestTunnelOutlivesItsConnection(t *testing.T) {
	r := newRig(true)
	r.client.Headers(1, false, ":method", "CONNECT", ":authority", "192.0.2.2:80")
	r.n.Run()
	r.app.Headers(1, false, ":status", "200")
	r.app.Body(1, true, nil)
	r.n.Run()
	chunk := []byte(strings.Repeat("x", 16_000))
	for i := range 6 { // more than the application's window
		r.client.Body(1, i == 5, chunk)
	}
	r.n.Run()
	r.client.C.Close()
	r.n.Run()
	if !r.down.Gone() || r.h.Open != 1 || r.closed != 0 {
		t.Fatalf("connection gone %v, %d streams open, OnClose called %d times", r.down.Gone(), r.h.Open, r.closed)
	}
	_ = r.app.F.WriteWindowUpdate(1, 1<<20)
	_ = r.app.F.WriteWindowUpdate(0, 1<<20)
	r.app.Flush()
	r.n.Run()
	if b, end := r.app.Bytes(1); len(b) != 6*len(chunk) || !end || r.h.Log[0].Reason != "" || r.closed != 1 {
		t.Errorf("%d bytes, end %v, log %v, OnClose called %d times", len(b), end, r.h.Log, r.closed)
	}
}
