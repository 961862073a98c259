package oci

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func sample() Image {
	return Image{Name: "localhost/sample:v1.2", Arch: "amd64", Entrypoint: []string{"/usr/bin/sample", "serve"}, User: "2102:2102",
		Labels: map[string]string{"b": "2", "a": "1", "c": "3"},
		Files: []File{
			{Path: "/usr/bin/sample", Mode: 0o755, Data: []byte("program")},
			{Path: "/tmp", Mode: 0o1777, Dir: true},
			{Path: "/usr/bin/other", Link: "sample"},
		}}
}

func write(t *testing.T, img Image) (archive []byte, digest string) {
	t.Helper()
	var buf bytes.Buffer
	digest, err := img.Write(&buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), digest
}

func read(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.IsZero() && h.ModTime.Unix() != 0 {
			t.Errorf("%s has the time %v", h.Name, h.ModTime)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSameInputSameBytes(t *testing.T) {
	first, digest := write(t, sample())
	for range 20 {
		img := sample()
		slices.Reverse(img.Files)
		again, d := write(t, img)
		if d != digest || !bytes.Equal(again, first) {
			t.Fatalf("digest %s, then %s", digest, d)
		}
	}
	img := sample()
	img.Files[0].Data = []byte("another program")
	if _, d := write(t, img); d == digest {
		t.Error("another program has the same digest")
	}
}

// The chain from the index to the layer's files holds: every descriptor's size and digest are those of its blob.
func TestDigests(t *testing.T) {
	archive, digest := write(t, sample())
	blobs := read(t, archive)
	blob := func(d descriptor) []byte {
		t.Helper()
		data := blobs["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		sum := sha256.Sum256(data)
		if len(data) != d.Size || "sha256:"+hex.EncodeToString(sum[:]) != d.Digest {
			t.Fatalf("blob of %+v has %d bytes", d, len(data))
		}
		return data
	}
	var idx index
	var man manifest
	var conf config
	for _, step := range []struct {
		data func() []byte
		into any
	}{
		{func() []byte { return blobs["index.json"] }, &idx},
		{func() []byte { return blob(idx.Manifests[0]) }, &man},
		{func() []byte { return blob(man.Config) }, &conf},
	} {
		if err := json.Unmarshal(step.data(), step.into); err != nil {
			t.Fatal(err)
		}
	}
	if idx.Manifests[0].Digest != digest || idx.Manifests[0].Annotations[refName] != "localhost/sample:v1.2" || idx.Manifests[0].Annotations[refNameGeneric] != "v1.2" {
		t.Errorf("index %+v; Write says %s", idx.Manifests[0], digest)
	}
	layer := blob(man.Layers[0])
	if len(man.Layers) != 1 || conf.RootFS.DiffIDs[0] != man.Layers[0].Digest {
		t.Errorf("layers %+v, diff IDs %v", man.Layers, conf.RootFS.DiffIDs)
	}
	if conf.Config.User != "2102:2102" || conf.Config.Labels["b"] != "2" || !slices.Equal(conf.Config.Entrypoint, []string{"/usr/bin/sample", "serve"}) {
		t.Errorf("config %+v", conf.Config)
	}
	var names []string
	for name := range read(t, layer) {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{"tmp/", "usr/", "usr/bin/", "usr/bin/other", "usr/bin/sample"}; !slices.Equal(names, want) {
		t.Errorf("the layer has %v, want %v", names, want)
	}
}

func TestImagesThatCannotBe(t *testing.T) {
	for what, spoil := range map[string]func(*Image){
		"no tag":             func(i *Image) { i.Name = "localhost:5000/sample" },
		"no architecture":    func(i *Image) { i.Arch = "" },
		"no entrypoint":      func(i *Image) { i.Entrypoint = nil },
		"a relative path":    func(i *Image) { i.Files[0].Path = "usr/bin/sample" },
		"a path that leaves": func(i *Image) { i.Files[0].Path = "/usr/../../etc/passwd" },
		"a file twice":       func(i *Image) { i.Files = append(i.Files, i.Files[0]) },
	} {
		img := sample()
		spoil(&img)
		if _, err := img.Write(io.Discard); err == nil {
			t.Errorf("%s: written", what)
		}
	}
}
