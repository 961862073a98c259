package deploy

import (
	"errors"
	"fmt"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/mesh"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// RecordName is the ConfigMap, in Namespace, that says with which values Conduit was installed.
const RecordName = "conduit-values"

const (
	recordValues  = "values.yaml"
	recordVersion = "version"
)

// Record is what a cluster remembers of an installation.
type Record struct {
	Version string
	Values  map[string]any // without the chart's defaults, which a later version may have others of
}

// Object is the ConfigMap of an installation with these values by this version.
func (r Record) Object() (*unstructured.Unstructured, error) {
	text, err := yaml.Marshal(r.Values)
	if err != nil {
		return nil, fmt.Errorf("record values: %w", err)
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": RecordName, "namespace": Namespace, "labels": map[string]any{
			kube.LabelInstallation: kube.Installation, "app.kubernetes.io/name": "conduit", "app.kubernetes.io/component": "values", "app.kubernetes.io/instance": "conduit",
			"app.kubernetes.io/part-of": "conduit", "app.kubernetes.io/version": r.Version, "app.kubernetes.io/managed-by": "conduit"}},
		"data": map[string]any{recordVersion: r.Version, recordValues: string(text)},
	}}, nil
}

// ReadRecord is the inverse of Object.
func ReadRecord(o *unstructured.Unstructured) (Record, error) {
	data, _, err := unstructured.NestedStringMap(o.Object, "data")
	if err != nil {
		return Record{}, fmt.Errorf("read ConfigMap %s: %w", RecordName, err)
	}
	if data[recordVersion] == "" {
		return Record{}, errors.New("read ConfigMap " + RecordName + ": it has no " + recordVersion)
	}
	values, err := Values([]byte(data[recordValues]))
	return Record{Version: data[recordVersion], Values: values}, err
}

// Installation is everything that `conduit install` makes with these values: Render and its Record, in the order of creation.
func Installation(values map[string]any) ([]*unstructured.Unstructured, error) {
	objects, err := Render(values)
	if err != nil {
		return nil, err
	}
	record, err := Record{Version: mesh.Version(), Values: values}.Object()
	if err != nil {
		return nil, err
	}
	return sorted(append(objects, record)), nil
}
