package h1_test

import (
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
)

// TestShed ends a connection that takes nothing of what it asked for.
func TestShed(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	r.client.C.Room = 10
	r.client.C.Pause()
	r.do(get+get, "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"+strings.Repeat("x", 500000))
	if r.sv.Held() < 100000 || r.sv.Taken() > 500000-100000 {
		t.Fatalf("held %d, taken %d", r.sv.Held(), r.sv.Taken())
	}
	r.sv.Shed()
	r.n.Run()
	if !r.down.IsRST || r.closed != 1 || r.h.Open != 0 || r.sv.Held() != 0 || len(r.abuses) != 1 || r.abuses[0] != mesh.AbuseUnread {
		t.Errorf("reset %v, closed %d, open %d, held %d, abuses %v", r.down.IsRST, r.closed, r.h.Open, r.sv.Held(), r.abuses)
	}
	if !r.app.Over() {
		t.Error("the server goes on")
	}
}
