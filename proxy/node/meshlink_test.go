package node

import (
	"net/netip"
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

func TestReadArrival(t *testing.T) {
	get := func(kv ...string) *exchange.Head {
		h := &exchange.Head{Method: "GET", Path: "/", Major: 2}
		for i := 0; i < len(kv); i += 2 {
			h.Fields = append(h.Fields, hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
		}
		return h
	}
	connect := func(authority string) *exchange.Head {
		return &exchange.Head{Method: "CONNECT", Authority: authority, Major: 2}
	}
	for name, c := range map[string]struct {
		head  *exchange.Head
		hbone bool
		want  arrival
		bad   bool
	}{
		"http1":         {get(dstField, "80/http1"), false, arrival{port: 80, major: 1}, false},
		"http2":         {get(dstField, "65535/http2"), false, arrival{port: 65535, major: 2}, false},
		"grpc":          {get(dstField, "1/http2", "content-type", "application/grpc+proto"), false, arrival{port: 1, major: 2, grpc: true}, false},
		"client":        {get(dstField, "80/http1", clientField, "[::ffff:10.0.0.1]:5"), false, arrival{port: 80, major: 1, client: netip.MustParseAddrPort("10.0.0.1:5")}, false},
		"client, junk":  {get(dstField, "80/http1", clientField, "x"), false, arrival{port: 80, major: 1}, false},
		"no field":      {get(), false, arrival{}, true},
		"port too big":  {get(dstField, "65536/http1"), false, arrival{}, true},
		"sign":          {get(dstField, "+80/http1"), false, arrival{}, true},
		"tunnel":        {connect("10.0.0.2:5432"), false, arrival{tunnel: true, dst: netip.MustParseAddrPort("10.0.0.2:5432")}, false},
		"tunnel, v6":    {connect("[fd00::2]:1"), true, arrival{tunnel: true, dst: netip.MustParseAddrPort("[fd00::2]:1")}, false},
		"tunnel, name":  {connect("db:5432"), true, arrival{tunnel: true}, true},
		"hbone request": {get(dstField, "80/http1"), true, arrival{}, true},
	} {
		got := readArrival(c.head, c.hbone)
		bad := got.bad != ""
		got.bad = ""
		if bad != c.bad || !bad && *got != c.want {
			t.Errorf("%s: %+v, bad %v", name, *got, bad)
		}
	}
}

// Nobody can make an application believe that somebody else is calling.
func TestBelieve(t *testing.T) {
	peer := netip.MustParseAddrPort("10.0.0.1:40000")
	for claimed, want := range map[string]string{"10.0.0.1:777": "10.0.0.1:777", "10.0.0.9:777": "10.0.0.1:40000"} {
		if got := believe(netip.MustParseAddrPort(claimed), peer); got.String() != want {
			t.Errorf("claimed %s: %v", claimed, got)
		}
	}
	if got := believe(netip.AddrPort{}, peer); got != peer {
		t.Errorf("nothing claimed: %v", got)
	}
}

func TestLabel(t *testing.T) {
	w := mesh.Workload{Namespace: "shop", Name: "web-7d-x"}
	if got := w.Label(); got != "shop/web-7d-x" {
		t.Error(got)
	}
	w.Owner = "ReplicaSet/web"
	if got := w.Label(); got != "shop/web" {
		t.Error(got)
	}
}
