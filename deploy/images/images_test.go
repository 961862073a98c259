package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// binaries builds what the images are made of.
func binaries(t *testing.T, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	args := []string{"build", "-trimpath", "-o", dir + "/"}
	for _, s := range specs {
		for _, b := range s.binaries {
			args = append(args, "conduit.io/conduit/cmd/"+b)
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

func TestImages(t *testing.T) {
	bin := binaries(t)
	outs := []string{t.TempDir(), t.TempDir()}
	var said [2]bytes.Buffer
	for i, out := range outs {
		if err := run(bin, out, "v0-test", &said[i]); err != nil {
			t.Fatal(err)
		}
	}
	if said[0].String() != said[1].String() {
		t.Errorf("two runs on the same binaries:\n%s%s", &said[0], &said[1])
	}
	for _, s := range specs {
		if !strings.Contains(said[0].String(), "localhost/"+s.name+":v0-test  sha256:") {
			t.Errorf("no line for %s in:\n%s", s.name, &said[0])
		}
		for _, ext := range []string{".tar", ".spdx.json"} {
			a, err := os.ReadFile(filepath.Join(outs[0], s.name+ext))
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(outs[1], s.name+ext))
			if err != nil || !bytes.Equal(a, b) {
				t.Errorf("%s%s differs between two runs (%v)", s.name, ext, err)
			}
		}
	}
	checkSBOM(t, filepath.Join(outs[0], "conduit-agent.spdx.json"), []string{"conduit-agent", "conduit-cni", "stdlib", "github.com/cilium/ebpf", "github.com/containernetworking/cni"})
	checkSBOM(t, filepath.Join(outs[0], "conduit-proxy.spdx.json"), []string{"conduit-proxy", "stdlib", "golang.org/x/net"})
}

func checkSBOM(t *testing.T, file string, want []string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc sbom
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{documentID: true}
	var names []string
	for _, p := range doc.Packages {
		if ids[p.SPDXID] {
			t.Errorf("%s: %s is there twice", file, p.SPDXID)
		}
		ids[p.SPDXID] = true
		names = append(names, p.Name)
		if p.PrimaryPurpose == "LIBRARY" && p.VersionInfo == "" {
			t.Errorf("%s: module %s has no version", file, p.Name)
		}
	}
	for _, w := range want {
		if !slices.Contains(names, w) {
			t.Errorf("%s does not name %s: %v", file, w, names)
		}
	}
	for _, r := range doc.Relationships {
		if !ids[r.Element] || !ids[r.Related] {
			t.Errorf("%s: %+v leads nowhere", file, r)
		}
	}
	if doc.DocumentNamespace == "" || doc.SPDXVersion != "SPDX-2.3" {
		t.Errorf("%s: namespace %q, version %q", file, doc.DocumentNamespace, doc.SPDXVersion)
	}
}

func TestWhatCannotBeAnImage(t *testing.T) {
	if err := run(t.TempDir(), t.TempDir(), "v1", io.Discard); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("without binaries: %v", err)
	}
	if err := run(t.TempDir(), t.TempDir(), "a b", io.Discard); err == nil {
		t.Error("a tag with a space is accepted")
	}
}
