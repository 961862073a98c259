package table

import (
	"encoding/json"
	"net/netip"
	"testing"

	"conduit.io/conduit/api/node"
)

// FuzzSnapshot: whatever a snapshot says, it can be looked up in, and nothing is found that cannot be dialled.
func FuzzSnapshot(f *testing.F) {
	for _, s := range []string{
		`{"version":1,"trustDomain":"td","workloads":[{"name":"w","namespace":"s","addrs":["10.0.0.1","fd00::1"],"uid":"u"}],
			"services":[{"name":"v","namespace":"s","addrs":["10.0.0.9"],"ports":[{"port":80,"protocol":"http1","endpoints":["10.0.0.1:8080"]}]}]}`,
		`{"services":[{"addrs":["10.0.0.9","::ffff:10.0.0.9"],"ports":[{"port":80},{"port":80},{"port":0}]}]}`, `{}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var s node.Snapshot
		if json.Unmarshal(in, &s) != nil {
			return
		}
		table := New(&s)
		dsts := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.9:80"), netip.MustParseAddrPort("[fd00::1]:8080"), {}}
		for _, v := range s.Services {
			for _, a := range v.Addrs {
				for _, p := range v.Ports {
					dsts = append(dsts, netip.AddrPortFrom(a, p.Port))
				}
			}
		}
		for _, w := range s.Workloads {
			for _, a := range w.Addrs {
				if a.IsValid() && table.Workload(a) == nil {
					t.Fatalf("no workload at %v", a)
				}
			}
		}
		for _, dst := range dsts {
			table.Declared(dst)
			port, _ := table.Service(dst)
			if port == nil {
				continue
			}
			for _, e := range port.Endpoints(dst.Addr()) {
				if !e.Addr.IsValid() || e.Addr.Addr().Is4In6() {
					t.Fatalf("%v leads to %v", dst, e.Addr)
				}
			}
		}
	})
}
