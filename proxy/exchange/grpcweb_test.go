package exchange

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
)

// webFrame is a frame of gRPC-Web.
func webFrame(flags byte, payload string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(payload))), payload...)
}

// webFeed gives a body to a webBody in pieces of size bytes.
func webFeed(text bool, body []byte, size int) *webBody {
	w := &webBody{text: text}
	for len(body) > 0 {
		n := min(size, len(body))
		w.feed(body[:n])
		body = body[n:]
	}
	return w
}

func TestWebStatus(t *testing.T) {
	message := webFrame(0, strings.Repeat("m", 5000))
	for _, tt := range []struct {
		name, trailer, status string
		flags                 byte
	}{
		{"ok", "grpc-status: 0\r\n", "0", 0x80},
		{"upper case, no blank", "Grpc-Message:x\r\nGRPC-STATUS:14\r\n", "14", 0x80},
		{"last line without its end", "grpc-message: y\r\ngrpc-status: 5", "5", 0x80},
		{"no status", "grpc-message: y\r\n", "2", 0x80},
		{"nothing", "", "2", 0x80},
		{"compressed", "grpc-status: 0\r\n", compressed, 0x81},
		{"long", "grpc-status: 0\r\nx: " + strings.Repeat("y", maxWebTrailer), "0", 0x80},
		{"too long", "x: " + strings.Repeat("y", maxWebTrailer) + "\r\ngrpc-status: 0\r\n", "2", 0x80},
	} {
		end := webFrame(tt.flags, tt.trailer)
		whole := bytes.Join([][]byte{message, webFrame(1, "compressed"), end}, nil)
		var text []byte // each frame is encoded, and padded, by itself
		for _, f := range [][]byte{message, webFrame(1, "compressed"), end} {
			text = append(text, base64.StdEncoding.EncodeToString(f)...)
		}
		for _, size := range []int{1, 3, 1000, 1 << 20} {
			if w := webFeed(false, whole, size); w.status != tt.status {
				t.Errorf("%s, in pieces of %d: status %q", tt.name, size, w.status)
			}
			if w := webFeed(true, text, size); w.status != tt.status {
				t.Errorf("%s, text, in pieces of %d: status %q", tt.name, size, w.status)
			}
		}
	}
	if w := webFeed(false, message[:100], 7); w.status != "" || w.between() {
		t.Errorf("half a message: %q, between %v", w.status, w.between())
	}
	for _, text := range []bool{false, true} {
		w := webFeed(text, nil, 1)
		if !w.between() {
			t.Error("before the first frame")
		}
		if end := webFeed(text, w.end(grpcFields(14, mesh.ReasonUpstreamReset, "gone: 100%")), 5); end.status != "14" || end.between() {
			t.Errorf("our own end: %q", end.status)
		}
	}
}

func FuzzWebBody(f *testing.F) {
	f.Add(webFrame(0x80, "grpc-status: 0\r\n"), false)
	f.Add([]byte(base64.StdEncoding.EncodeToString(webFrame(0x80, "grpc-status: 7\r\n"))), true)
	f.Add([]byte("=A==AAAA===="), true)
	f.Fuzz(func(t *testing.T, body []byte, text bool) {
		want := webFeed(text, body, len(body)+1)
		for _, size := range []int{1, 2, 5, 1024} {
			if w := webFeed(text, body, size); w.status != want.status || w.between() != want.between() {
				t.Fatalf("in pieces of %d: status %q between %v, whole: %q %v", size, w.status, w.between(), want.status, want.between())
			}
		}
		if len(want.trailer) > maxWebTrailer {
			t.Fatalf("%d bytes are kept", len(want.trailer))
		}
	})
}

func TestGRPCKinds(t *testing.T) {
	for value, want := range map[string][2]bool{
		"application/grpc": {true, false}, "application/grpc+proto": {true, false}, "application/grpc;charset=x": {true, false},
		"application/grpc-web": {true, true}, "application/grpc-web+proto": {true, true}, "application/grpc-web-text": {true, true},
		"application/grpcish": {}, "application/json": {}, "": {},
	} {
		h := &Head{Fields: withLength(nil, 1)}
		h.Fields[0].Name, h.Fields[0].Value = "content-type", value
		if h.GRPC() != want[0] || h.GRPCWeb() != want[1] {
			t.Errorf("%q: %v %v", value, h.GRPC(), h.GRPCWeb())
		}
	}
}
