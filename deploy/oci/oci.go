// Package oci writes container images as OCI image layouts in a tar archive, which `ctr images import` and most other
// tools read. The same input makes the same bytes: no time, no user and no order of the file system gets in.
package oci

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// Image is what an archive holds: one image of one layer. Files are uncompressed in it: an archive is read once, from
// a local disk.
type Image struct {
	Name       string // with a tag, such as "localhost/conduit-proxy:v1"
	Arch       string // as in GOARCH
	Entrypoint []string
	User       string // numeric, "uid" or "uid:gid"; empty is root
	Env        []string
	WorkDir    string
	Labels     map[string]string
	Files      []File
}

// File is a file or directory of an image. Parents that are not named are made with mode 0755, root's.
type File struct {
	Path string // absolute
	Mode int64  // permission bits, and S_ISVTX
	UID  int
	GID  int
	Dir  bool
	Data []byte
	Link string // makes it a symbolic link
}

// Media types of the OCI image specification, version 1.1.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// refName is the annotation from which containerd takes the name of an imported image.
const (
	refName        = "io.containerd.image.name"
	refNameGeneric = "org.opencontainers.image.ref.name"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type config struct {
	Architecture string      `json:"architecture"`
	OS           string      `json:"os"`
	Config       runConfig   `json:"config"`
	RootFS       rootFS      `json:"rootfs"`
	History      []createdBy `json:"history"`
}

type runConfig struct {
	User       string            `json:"User,omitempty"`
	Env        []string          `json:"Env,omitempty"`
	Entrypoint []string          `json:"Entrypoint,omitempty"`
	WorkingDir string            `json:"WorkingDir,omitempty"`
	Labels     map[string]string `json:"Labels,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type createdBy struct {
	CreatedBy string `json:"created_by"`
}

// Write writes the image's archive, and returns the digest of its manifest.
func (img Image) Write(w io.Writer) (digest string, err error) {
	if err := img.check(); err != nil {
		return "", err
	}
	layer, err := img.layer()
	if err != nil {
		return "", fmt.Errorf("write layer of %s: %w", img.Name, err)
	}
	blobs := map[string][]byte{}
	add := func(mediaType string, data []byte) descriptor {
		sum := sha256.Sum256(data)
		d := descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: len(data)}
		blobs["blobs/sha256/"+hex.EncodeToString(sum[:])] = data
		return d
	}
	layerDesc := add(typeLayer, layer)
	conf, err := json.Marshal(config{Architecture: img.Arch, OS: "linux",
		Config:  runConfig{User: img.User, Env: img.Env, Entrypoint: img.Entrypoint, WorkingDir: img.WorkDir, Labels: img.Labels},
		RootFS:  rootFS{Type: "layers", DiffIDs: []string{layerDesc.Digest}},
		History: []createdBy{{CreatedBy: "conduit make images"}}})
	if err != nil {
		return "", err
	}
	man, err := json.Marshal(manifest{SchemaVersion: 2, MediaType: typeManifest, Config: add(typeConfig, conf),
		Layers: []descriptor{layerDesc}, Annotations: img.Labels})
	if err != nil {
		return "", err
	}
	manDesc := add(typeManifest, man)
	manDesc.Platform = &platform{Architecture: img.Arch, OS: "linux"}
	_, tag, _ := strings.Cut(path.Base(img.Name), ":")
	manDesc.Annotations = map[string]string{refName: img.Name, refNameGeneric: tag}
	idx, err := json.Marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{manDesc}})
	if err != nil {
		return "", err
	}
	blobs["index.json"] = idx
	blobs["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	return manDesc.Digest, writeArchive(w, blobs)
}

func (img Image) check() error {
	base := path.Base(img.Name)
	if _, tag, ok := strings.Cut(base, ":"); !ok || tag == "" {
		return fmt.Errorf("image %q has no tag", img.Name)
	}
	if img.Arch == "" || len(img.Entrypoint) == 0 {
		return fmt.Errorf("image %s: architecture and entrypoint are needed", img.Name)
	}
	for _, f := range img.Files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
			return fmt.Errorf("image %s: %q is no clean absolute path", img.Name, f.Path)
		}
	}
	return nil
}

// layer is the image's files as a tar archive, in the order of their paths.
func (img Image) layer() ([]byte, error) {
	files := map[string]File{}
	for _, f := range img.Files {
		if _, ok := files[f.Path]; ok {
			return nil, fmt.Errorf("%s is there twice", f.Path)
		}
		files[f.Path] = f
	}
	for _, f := range img.Files {
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			if _, ok := files[dir]; !ok {
				files[dir] = File{Path: dir, Mode: 0o755, Dir: true}
			}
		}
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, p := range sortedKeys(files) {
		f := files[p]
		h := &tar.Header{Name: strings.TrimPrefix(p, "/"), Mode: f.Mode, Uid: f.UID, Gid: f.GID, Format: tar.FormatPAX, Typeflag: tar.TypeReg, Size: int64(len(f.Data))}
		switch {
		case f.Dir:
			h.Typeflag, h.Name, h.Size = tar.TypeDir, h.Name+"/", 0
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.Link, 0
		}
		if err := writeEntry(tw, h, f.Data); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), tw.Close()
}

func writeArchive(w io.Writer, blobs map[string][]byte) error {
	tw := tar.NewWriter(w)
	for _, name := range sortedKeys(blobs) {
		h := &tar.Header{Name: name, Mode: 0o644, Format: tar.FormatPAX, Typeflag: tar.TypeReg, Size: int64(len(blobs[name]))}
		if err := writeEntry(tw, h, blobs[name]); err != nil {
			return err
		}
	}
	return tw.Close()
}

func writeEntry(tw *tar.Writer, h *tar.Header, data []byte) error {
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(data[:h.Size])
	return err
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
