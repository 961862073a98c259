package store

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conduit.io/conduit/mesh"

	"github.com/google/go-cmp/cmp"
)

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func sample(container, ifname string) *Attachment {
	return &Attachment{Network: "net", ContainerID: container, IfName: ifname, Netns: "/run/netns/x", Cookie: 42,
		Namespace: "shop", Pod: "web", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Workload: mesh.Workload{UID: "u", Mode: mesh.Strict, Addrs: []netip.Addr{}}}
}

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pods")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Two attachments whose naive file names would be the same.
	all := []*Attachment{sample("a", "b-c"), sample("a-b", "c")}
	for _, a := range all {
		if err := s.Put(a); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(all, got, sameAddr); d != "" {
		t.Errorf("loaded (-want +got):\n%s", d)
	}
	for range 2 { // the second time it is gone already
		if err := s.Delete(all[0].Key()); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := s.Load(); len(got) != 1 || got[0].ContainerID != "a-b" {
		t.Errorf("after Delete: %v", got)
	}
}

func TestLoadGoesOnAfterBadFiles(t *testing.T) {
	dir := t.TempDir()
	s, _ := Open(dir)
	if err := s.Put(sample("good", "eth0")); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"broken-eth0.json": "{", "other-eth0.json": `{"containerID":"x","netns":"/n","cookie":1}`, "cut-eth0.json.tmp": "{"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Load()
	if len(got) != 1 || got[0].ContainerID != "good" {
		t.Errorf("loaded %v", got)
	}
	if err == nil || !strings.Contains(err.Error(), "broken-eth0.json") || !strings.Contains(err.Error(), "other-eth0.json describes another") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cut-eth0.json.tmp")); !os.IsNotExist(err) {
		t.Error("the cut-off write was not removed")
	}
}
