package peers

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestLinks(t *testing.T) {
	for _, tc := range []struct {
		lane    Lane
		role    Role
		in, out string
	}{
		{H2, Alone, "http2", "http2"},
		{H1, Alone, "http1", "http1"},
		{H1H2, Alone, "http1", "http2"},
		{H1, Client, "http1", "http2"}, // between two proxies it is HTTP/2
		{H1, Server, "http2", "http1"},
		{H1H2, Server, "http2", "http2"},
		{Raw, Client, "opaque", "opaque"},
		{Raw, Server, "opaque", "opaque"},
	} {
		if k := newLink(tc.lane, tc.role, "a", "b"); k.In != tc.in || k.Out != tc.out {
			t.Errorf("%s, role %d: %s to %s, want %s to %s", tc.lane, tc.role, k.In, k.Out, tc.in, tc.out)
		}
	}
}

// Whatever the role, TLS is spoken on one side or on none, and nothing of the template is left.
func TestTemplates(t *testing.T) {
	certs := Certs{CA: "CA", ClientCert: "CC", ClientKey: "CK", ServerCert: "SC", ServerKey: "SK", ClientBoth: "CB", ServerBoth: "SB", ServerID: "ID", ServerName: "SN"}
	for _, p := range programs {
		if p.conf == "" {
			continue
		}
		for _, role := range []Role{Alone, Client, Server} {
			h := Hop{Role: role, Certs: certs, Dir: "/d"}
			for _, l := range p.distinct(p.lanes) {
				h.Links = append(h.Links, newLink(l, role, "127.0.0.1:1000", "127.0.0.1:2000"))
			}
			b, err := render(p.conf, h)
			if err != nil {
				t.Fatal(err)
			}
			text := string(b)
			client := slices.ContainsFunc([]string{"CC", "CB"}, func(s string) bool { return strings.Contains(text, s) })
			server := slices.ContainsFunc([]string{"SC", "SB"}, func(s string) bool { return strings.Contains(text, s) })
			if client != (role == Client) || server != (role == Server) || strings.Contains(text, "{{") || strings.Contains(text, "<no value>") {
				t.Errorf("%s, role %d:\n%s", p.name, role, text)
			}
			if p.conf == "conduit.json" && !json.Valid(b) {
				t.Errorf("role %d is no JSON:\n%s", role, text)
			}
		}
	}
}

func TestDefs(t *testing.T) {
	names := []string{}
	for _, d := range Defs() {
		names = append(names, d.Name)
		if d.MTLS() != (strings.HasSuffix(d.Name, "-mesh")) {
			t.Errorf("%s: mutual TLS %v", d.Name, d.MTLS())
		}
	}
	for _, want := range []string{Direct, L4, TLSEnds, Conduit, ConduitMesh, "haproxy", "haproxy-mesh", "nghttpx-mesh", "nginx-mesh", "caddy-mesh", "caddy-debian", "reverseproxy"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing in %v", want, names)
		}
	}
}
