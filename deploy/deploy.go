// Package deploy has what Conduit is on a cluster: the Helm chart, which it renders with Helm's own engine, and the
// CustomResourceDefinitions. It does no I/O.
package deploy

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/mesh"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	v2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

//go:embed all:chart
var chartFiles embed.FS

//go:embed crds/*.yaml
var crdFiles embed.FS

// Namespace is the one that Conduit runs in. It is part of the controller's identity.
const Namespace = "conduit"

// The names of what runs in it.
const (
	Controller = "conduit-controller" // Deployment, Service, ServiceAccount
	Agent      = "conduit-agent"      // DaemonSet, ServiceAccount
)

// PartOf selects every object of Conduit: what bears kube.LabelInstallation, and nothing else.
const PartOf = kube.LabelInstallation + "=" + kube.Installation

// Owned selects those that `conduit install` made, and not the controller or Helm.
const Owned = PartOf + ",app.kubernetes.io/managed-by=conduit"

// Ours reports whether o bears Conduit's mark. An object of the same name without it is somebody else's.
func Ours(o metav1.Object) bool { return o.GetLabels()[kube.LabelInstallation] == kube.Installation }

// HighAvailability is the chart's values for a control plane of several replicas.
func HighAvailability() (map[string]any, error) {
	data, err := chartFiles.ReadFile("chart/values-ha.yaml")
	if err != nil {
		return nil, err
	}
	return Values(data)
}

// Defaults is the chart's values as they are without any of somebody's own, as YAML with comments.
func Defaults() ([]byte, error) { return chartFiles.ReadFile("chart/values.yaml") }

// TrustDomain is what identities begin with in an installation with these values.
func TrustDomain(values map[string]any) (string, error) {
	text, err := Defaults()
	if err != nil {
		return "", err
	}
	defaults, err := Values(text)
	if err != nil {
		return "", err
	}
	d, ok := Merge(defaults, values)["trustDomain"].(string)
	if !ok {
		return "", &ValuesError{"trustDomain is no text"}
	}
	return d, nil
}

// Values reads values from YAML.
func Values(data []byte) (map[string]any, error) {
	v, err := loader.LoadValues(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	return v, nil
}

// Merge is a with b's values in place of its own, down to single fields of tables. Neither is changed.
func Merge(a, b map[string]any) map[string]any { return loader.MergeMaps(a, b) }

// Render is every object of an installation with these values, which may be nil, in the order in which they can be created. The
// error says which value is not one of the chart's.
func Render(values map[string]any) ([]*unstructured.Unstructured, error) {
	c, err := load()
	if err != nil {
		return nil, fmt.Errorf("load chart: %w", err)
	}
	c.Metadata.AppVersion = mesh.Version()
	top, err := util.ToRenderValues(c, values, common.ReleaseOptions{Name: "conduit", Namespace: Namespace, Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return nil, &ValuesError{strings.TrimSpace(strings.TrimPrefix(err.Error(), "values don't meet the specifications of the schema(s) in the following chart(s):\nconduit:"))}
	}
	if release, ok := top["Release"].(map[string]any); ok {
		release["Service"] = "conduit"
	}
	files, err := engine.Engine{}.RenderWithContext(context.Background(), c, top) // it asks nobody: the chart looks nothing up
	if err != nil {
		return nil, fmt.Errorf("render chart: %w", err)
	}
	var all []*unstructured.Unstructured
	for name, text := range files {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		objects, err := parse([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("render chart: %s: %w", name, err)
		}
		all = append(all, objects...)
	}
	crds, err := CRDs()
	if err != nil {
		return nil, err
	}
	return sorted(append(all, crds...)), nil
}

// ValuesError is about values that the chart does not have, or not of this kind.
type ValuesError struct{ text string }

// Error names the values.
func (e *ValuesError) Error() string { return "values: " + e.text }

// CRDs are the definitions of Conduit's own resources.
func CRDs() ([]*unstructured.Unstructured, error) {
	names, err := fs.Glob(crdFiles, "crds/*.yaml")
	if err != nil {
		return nil, err
	}
	var all []*unstructured.Unstructured
	for _, name := range names {
		data, err := crdFiles.ReadFile(name)
		if err != nil {
			return nil, err
		}
		objects, err := parse(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, objects...)
	}
	return all, nil
}

func load() (*v2.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(chartFiles, "chart", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := chartFiles.ReadFile(path)
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(path, "chart/"), Data: data})
		return err
	})
	if err != nil {
		return nil, err
	}
	return loader.LoadFiles(files)
}

func parse(data []byte) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		data, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			return nil, err
		}
		var fields map[string]any
		if err := json.Unmarshal(data, &fields); err != nil { // whole numbers stay whole
			return nil, err
		}
		if len(fields) > 0 {
			all = append(all, &unstructured.Unstructured{Object: fields})
		}
	}
}
