package kube

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"conduit.io/conduit/deploy/oci"
	"conduit.io/conduit/tests/cluster/machine"
)

// PauseImage is the image of a program that does nothing. Every node has it.
const PauseImage = "localhost/pause:1"

const (
	pauseArchive   = "pause.tar"
	corednsImage   = "localhost/coredns:1"
	corednsArchive = "coredns.tar"
)

// makeImages writes the archives of the images that every cluster has.
func (c *Cluster) makeImages(bins Binaries) error {
	if err := ProgramImage(filepath.Join(c.dir, pauseArchive), PauseImage, filepath.Join(bins.Own, "pause")); err != nil {
		return err
	}
	return ProgramImage(filepath.Join(c.dir, corednsArchive), corednsImage, filepath.Join(bins.CoreDNS, "coredns"))
}

// ProgramImage writes the archive of an image that is one static program of the host, with /tmp beside it.
func ProgramImage(archive, name, program string, args ...string) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("make image %s: %w", name, err)
	}
	inside := "/" + filepath.Base(program)
	img := oci.Image{Name: name, Arch: runtime.GOARCH, Entrypoint: append([]string{inside}, args...), Env: []string{"PATH=/"}, WorkDir: "/",
		Files: []oci.File{{Path: inside, Mode: 0o755, Data: data}, {Path: "/tmp", Mode: 0o1777, Dir: true}, {Path: "/etc", Mode: 0o755, Dir: true}}}
	var buf bytes.Buffer
	if _, err := img.Write(&buf); err != nil {
		return fmt.Errorf("make image %s: %w", name, err)
	}
	return os.WriteFile(archive, buf.Bytes(), 0o644)
}

// ImportImage makes an archive's images known to containerd on every node. Pods name them with imagePullPolicy
// Never or IfNotPresent.
func (c *Cluster) ImportImage(ctx context.Context, archive string) error {
	for _, i := range sortedKeys(c.nodes) {
		if err := c.importArchive(ctx, c.nodes[i], archive); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) importArchive(ctx context.Context, m *machine.Machine, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	defer f.Close()
	cmd := m.Command(ctx, "ctr", "-n", "k8s.io", "images", "import", "-")
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import %s on %s: %w: %s", filepath.Base(archive), m.Name(), err, bytes.TrimSpace(out))
	}
	return nil
}
