package kubetest

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"conduit.io/conduit/tests/cluster/kube"
)

// LoadImage is the image of tests/load. Imported before its pods are made.
const LoadImage = "localhost/load:test"

// LoadPort is where load pods listen: HTTP/1.1, HTTP/2 and gRPC.
const LoadPort = 9000

// loaded are the images that clusters have already.
var loaded sync.Map

type loadedImage struct {
	cluster *kube.Cluster
	image   string
}

// ImportLoad imports the image of tests/load on every node, once for each cluster.
func (c *Cluster) ImportLoad() {
	c.t.Helper()
	c.ImportProgram(LoadImage, "conduit.io/conduit/tests/load")
}

// ImportProgram builds a Go program, and imports an image of it on every node, once for each cluster. The program is at the root, named
// as its package's folder.
func (c *Cluster) ImportProgram(image, pkg string) {
	c.t.Helper()
	if _, there := loaded.LoadOrStore(loadedImage{c.Cluster, image}, true); there {
		return
	}
	dir := c.t.TempDir()
	program, archive := filepath.Join(dir, path.Base(pkg)), filepath.Join(dir, "image.tar")
	build := exec.CommandContext(c.Context(), "go", "build", "-o", program, pkg)
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		c.t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	if err := kube.ProgramImage(archive, image, program); err != nil {
		c.t.Fatal(err)
	}
	if err := c.ImportImage(c.Context(), archive); err != nil {
		c.t.Fatal(err)
	}
}

type object = map[string]any

// LoadPod is the manifest of a pod that answers on LoadPort, and from which Load sends requests. node 0 is any node.
func LoadPod(name string, node int, labels map[string]string) string {
	spec := object{
		"terminationGracePeriodSeconds": 1,
		"containers": []object{{"name": "load", "image": LoadImage, "imagePullPolicy": "Never", "args": []string{"backend", "--address", fmt.Sprintf("0.0.0.0:%d", LoadPort)},
			"ports": []object{{"containerPort": LoadPort}}, "readinessProbe": object{"tcpSocket": object{"port": LoadPort}, "periodSeconds": 1}}},
	}
	if node > 0 {
		spec["nodeName"] = fmt.Sprintf("node%d", node)
	}
	pod, err := json.Marshal(object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name, "labels": labels}, "spec": spec})
	if err != nil {
		panic(err) // nothing in it cannot be marshalled
	}
	return string(pod) + "\n---\n"
}

// Load sends requests from a load pod, and returns an error unless every one was answered well.
func (c *Cluster) Load(from, target string, flags ...string) error {
	out, err := c.Exec(from, append([]string{"/load", "run", "--target", target, "--protocol", "http1"}, flags...)...)
	if err != nil {
		return fmt.Errorf("load from %s to %s: %w\n%s", from, target, err, strings.TrimSpace(out))
	}
	return nil
}
