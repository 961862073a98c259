package manifest

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"conduit.io/conduit/api/v1alpha1"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// parseFile decodes and checks every document of a file, but for foreign objects, which it leaves out. Objects are of
// use only when there are no faults.
func parseFile(file string, data []byte) ([]*object, []Fault) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var objects []*object
	var faults []Fault
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, append(faults, syntaxFault(file, data, err)) // the decoder cannot go on
		}
		d := &decoder{file: file, lines: map[string]int{}}
		objects = append(objects, d.document(doc.Content[0], "")...)
		faults = append(faults, d.faults...)
	}
	return objects, append(faults, repeated(file, objects)...)
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// parserError matches the messages for which the yaml package counts lines from 0 rather than from 1.
var parserError = regexp.MustCompile(`^did not find expected (key|node content|'|<)`)

func syntaxFault(file string, data []byte, err error) Fault {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return Fault{File: file, Message: "not valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	line, _ := strconv.Atoi(m[1])
	switch {
	case parserError.MatchString(m[2]):
		line++
	case strings.Contains(m[2], "tab character"):
		// The package names the line where the token before the tab began.
		for i, text := range strings.Split(string(data), "\n") {
			indent := text[:len(text)-len(strings.TrimLeft(text, " \t"))]
			if i+1 >= line && strings.Contains(indent, "\t") {
				line = i + 1
				break
			}
		}
	}
	return Fault{File: file, Line: line, Message: "not valid YAML: " + m[2]}
}

func repeated(file string, objects []*object) (faults []Fault) {
	seen := map[objectKey]*object{}
	for _, o := range objects {
		if first := seen[o.key()]; first != nil {
			faults = append(faults, Fault{File: file, Line: o.line, Message: o.String() + " is there twice (first in line " +
				strconv.Itoa(first.line) + ")"})
			continue
		}
		seen[o.key()] = o
	}
	return faults
}

// document decodes one object, or the items of a List.
func (d *decoder) document(n *yaml.Node, path string) []*object {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil // an empty document, as between two separators
	}
	if !d.want(n, yaml.MappingNode, "a Kubernetes object", path) {
		return nil
	}
	version, kind := text(n, "apiVersion"), text(n, "kind")
	switch {
	case kind == "" || version == "":
		d.fault(n.Line, path, "the object has no apiVersion or no kind; %s", supported)
		return nil
	case version == "v1" && kind == "List":
		return d.list(n, path)
	}
	var body any
	var meta *metav1.ObjectMeta
	switch version + " " + kind {
	case "v1 Namespace":
		o := &corev1.Namespace{}
		body, meta = o, &o.ObjectMeta
	case "v1 Pod":
		o := &corev1.Pod{}
		body, meta = o, &o.ObjectMeta
	case "v1 Service":
		o := &corev1.Service{}
		body, meta = o, &o.ObjectMeta
	case "conduit.io/v1alpha1 MeshPolicy":
		o := &v1alpha1.MeshPolicy{}
		body, meta = o, &o.ObjectMeta
	default:
		if foreign(version, kind) {
			return nil
		}
		d.fault(lineOf(n, "kind"), join(path, "kind"), "%s %s is not supported; %s", version, kind, supported)
		return nil
	}
	before := len(d.faults)
	d.value(n, reflect.ValueOf(body).Elem(), path)
	if len(d.faults) > before {
		return nil
	}
	o := &object{kind: kind, line: n.Line, body: body}
	d.check(o, meta, path)
	return []*object{o}
}

func (d *decoder) list(n *yaml.Node, path string) (out []*object) {
	d.each(n, path, func(key, val *yaml.Node, sub string) {
		switch key.Value {
		case "apiVersion", "kind", "metadata":
		case "items":
			if !d.want(val, yaml.SequenceNode, "a list", sub) {
				return
			}
			for i, item := range val.Content {
				out = append(out, d.document(item, sub+"["+strconv.Itoa(i)+"]")...)
			}
		default:
			d.fault(key.Line, sub, "unknown field")
		}
	})
	return out
}

func find(n *yaml.Node, field string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == field {
			return n.Content[i+1]
		}
	}
	return nil
}

func text(n *yaml.Node, field string) string {
	if v := find(n, field); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

func lineOf(n *yaml.Node, field string) int {
	if v := find(n, field); v != nil {
		return v.Line
	}
	return n.Line
}
