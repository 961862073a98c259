package kube

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed coredns.yaml
var corednsManifest string

// KubectlCommand prepares kubectl on the host, with full rights.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bins.Kubernetes, "kubectl"), args...)
	cmd.Env = []string{"KUBECONFIG=" + c.Kubeconfig(), "HOME=" + c.dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	return cmd
}

// Kubectl runs kubectl, and returns what it wrote on standard output. The error has what it wrote on standard error.
func (c *Cluster) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := c.KubectlCommand(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
