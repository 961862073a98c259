package node

import (
	"net/netip"
	"testing"

	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

// FuzzArrival: of whatever another proxy says in the head of a stream, either something is wrong, or it names an address and
// a port that can be dialled; and what we say ourselves is understood as it was meant.
func FuzzArrival(f *testing.F) {
	f.Add("CONNECT", "10.0.0.1:80", "", "10.0.0.2:5", true)
	f.Add("GET", "x", "8080/http1", "[::1]:5", false)
	f.Add("CONNECT", "[fe80::1%eth0]:80", "80/http2", "", false)
	f.Fuzz(func(t *testing.T, method, authority, dst, client string, hbone bool) {
		req := &exchange.Head{Method: method, Authority: authority, Path: "/", Major: 2, Fields: []hpack.HeaderField{
			{Name: dstField, Value: dst}, {Name: clientField, Value: client},
		}}
		a := readArrival(req, hbone)
		if a.client.IsValid() && (a.client.Addr().Is4In6() || a.client.Addr().Zone() != "") {
			t.Fatalf("client %q became %v", client, a.client)
		}
		if a.bad != "" {
			return
		}
		if a.tunnel {
			if !a.dst.IsValid() || a.dst.Addr().Is4In6() || a.dst.Addr().Zone() != "" {
				t.Fatalf("%q became %v", authority, a.dst)
			}
			return
		}
		if hbone || a.port == 0 || a.major != 1 && a.major != 2 {
			t.Fatalf("%q became port %d, HTTP/%d", dst, a.port, a.major)
		}
		d := &down{client: netip.MustParseAddrPort("192.0.2.1:5")}
		if a.client.IsValid() {
			d.client = a.client
		}
		req.Fields = d.linkFields(a.port, a.major)
		if b := readArrival(req, hbone); b.bad != "" || b.port != a.port || b.major != a.major || b.client != d.client {
			t.Fatalf("%v is understood as %+v", req.Fields, b)
		}
	})
}
