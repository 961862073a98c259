package kube

import (
	"testing"

	"conduit.io/conduit/mesh"
)

func TestProtocol(t *testing.T) {
	s := func(v string) *string { return &v }
	tests := []struct {
		app  *string
		name string
		want mesh.Protocol
	}{
		{nil, "", mesh.Detect}, {nil, "http", mesh.HTTP1}, {nil, "http-api", mesh.HTTP1}, {nil, "http2-api", mesh.HTTP2},
		{nil, "grpc-api", mesh.HTTP2}, {nil, "h2c", mesh.HTTP2}, {nil, "tcp-db", mesh.Opaque}, {nil, "httpish", mesh.Detect},
		{s("kubernetes.io/h2c"), "http", mesh.HTTP2}, {s("http"), "tcp-x", mesh.HTTP1}, {s("HTTPS"), "", mesh.Opaque},
		{s("example.com/mine"), "http", mesh.Detect}, {s(""), "http", mesh.HTTP1},
	}
	for _, tt := range tests {
		if got := Protocol(tt.app, tt.name); got != tt.want {
			t.Errorf("Protocol(%v, %q) = %s, want %s", tt.app, tt.name, got, tt.want)
		}
	}
}
