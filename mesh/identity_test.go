package mesh_test

import (
	"errors"
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
)

func TestParseIdentity(t *testing.T) {
	want := mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	got, err := mesh.ParseIdentity("spiffe://cluster.local/ns/shop/sa/web")
	if err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
	if got.String() != "spiffe://cluster.local/ns/shop/sa/web" || got.URL().String() != got.String() {
		t.Fatalf("spelled %q and %q", got, got.URL())
	}
	for _, bad := range []string{
		"", "spiffe://", "http://cluster.local/ns/shop/sa/web", "SPIFFE://cluster.local/ns/shop/sa/web",
		"spiffe://cluster.local/ns/shop/sa/web/", "spiffe://cluster.local/ns/shop/sa", "spiffe://cluster.local/sa/web/ns/shop",
		"spiffe:///ns/shop/sa/web", "spiffe://cluster.local/ns//sa/web", "spiffe://cluster.local:80/ns/shop/sa/web",
		"spiffe://u@cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/web?x", "spiffe://cluster.local/ns/shop/sa/web#x",
		"spiffe://cluster.local/ns/../sa/web", "spiffe://cluster.local/ns/%73hop/sa/web", "spiffe://Cluster.local/ns/shop/sa/web",
		"spiffe://cluster.local/ns/shop/sa/" + strings.Repeat("a", 2048),
	} {
		if id, err := mesh.ParseIdentity(bad); !errors.Is(err, mesh.ErrNotSPIFFE) || !id.IsZero() {
			t.Errorf("%q gave %+v, %v", bad, id, err)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/shop/sa/web")
	f.Add("spiffe://a/ns/b/sa/c%00")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := mesh.ParseIdentity(s)
		if err == nil && id.String() != s {
			t.Fatalf("%q reads as %q: two spellings of one identity", s, id)
		}
	})
}
