// Command images writes Conduit's container images: OCI archives of static binaries and nothing else, with an SBOM beside each.
// The same binaries make the same bytes.
package main

import (
	"bytes"
	"debug/buildinfo"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"

	"conduit.io/conduit/deploy/oci"
)

// spec is one image.
type spec struct {
	name, about string
	binaries    []string // the first one is the entrypoint; all are in /usr/bin
	user        string
	dirs        []oci.File
}

var specs = []spec{
	{name: "conduit-controller", about: "control plane of the Conduit service mesh", binaries: []string{"conduit-controller"}, user: "65532:65532",
		dirs: []oci.File{{Path: "/tmp", Mode: 0o1777, Dir: true}}},
	// Root: it loads BPF programs, and writes to the node's CNI directories.
	{name: "conduit-agent", about: "node daemon of the Conduit service mesh, with the CNI plugin that it installs", binaries: []string{"conduit-agent", "conduit-cni"}},
	{name: "conduit-proxy", about: "data plane of the Conduit service mesh", binaries: []string{"conduit-proxy"}, user: "2102:2102"},
}

func main() {
	bin := flag.String("bin", "bin", "`DIR` of the binaries")
	out := flag.String("out", "bin/images", "`DIR` for the archives")
	version := flag.String("version", "unknown", "`TAG` of the images")
	flag.Parse()
	if err := run(*bin, *out, *version, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// validTag is the grammar of tags in the OCI distribution specification.
var validTag = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

func run(bin, out, version string, stdout io.Writer) error {
	if !validTag.MatchString(version) {
		return fmt.Errorf("version %q cannot be an image's tag", version)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, s := range specs {
		img, sbom, err := s.build(bin, version)
		if err != nil {
			return err
		}
		var archive bytes.Buffer
		digest, err := img.Write(&archive)
		if err != nil {
			return err
		}
		for file, data := range map[string][]byte{s.name + ".tar": archive.Bytes(), s.name + ".spdx.json": sbom} {
			if err := replaceFile(filepath.Join(out, file), data); err != nil {
				return err
			}
		}
		fmt.Fprintf(stdout, "%s  %s  %.1f MB\n", img.Name, digest, float64(archive.Len())/1e6)
	}
	return nil
}

// build reads the binaries of an image, and what they say of themselves.
func (s spec) build(bin, version string) (oci.Image, []byte, error) {
	img := oci.Image{Name: "localhost/" + s.name + ":" + version, Entrypoint: []string{"/usr/bin/" + s.binaries[0]}, User: s.user,
		Env: []string{"PATH=/usr/bin"}, WorkDir: "/", Files: s.dirs,
		Labels: map[string]string{
			"org.opencontainers.image.title": s.name, "org.opencontainers.image.description": s.about, "org.opencontainers.image.version": version,
		}}
	doc := newSBOM(s.name, version)
	for _, b := range s.binaries {
		data, err := os.ReadFile(filepath.Join(bin, b))
		if err != nil {
			return img, nil, fmt.Errorf("read binary (make build): %w", err)
		}
		info, err := buildinfo.Read(bytes.NewReader(data))
		if err != nil {
			return img, nil, fmt.Errorf("read build information of %s: %w", b, err)
		}
		if setting(info, "CGO_ENABLED") != "0" {
			return img, nil, fmt.Errorf("%s is not built with CGO_ENABLED=0: it may want libraries that the image has not", b)
		}
		img.Arch = setting(info, "GOARCH")
		if rev := setting(info, "vcs.revision"); rev != "" {
			img.Labels["org.opencontainers.image.revision"] = rev
			img.Labels["org.opencontainers.image.created"] = setting(info, "vcs.time")
		}
		img.Files = append(img.Files, oci.File{Path: "/usr/bin/" + b, Mode: 0o755, Data: data})
		doc.addBinary(b, data, info)
	}
	sbom, err := doc.marshal()
	return img, sbom, err
}

func setting(info *debug.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// replaceFile puts a whole file in the place of another.
func replaceFile(name string, data []byte) error {
	if err := os.WriteFile(name+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
