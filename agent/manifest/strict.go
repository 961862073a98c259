package manifest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxNodes bounds one document after its aliases are followed, against documents that expand without end.
const maxNodes = 200_000

// decoder fills Go values from YAML nodes by their json tags, and notes every fault with its line and field path. It
// is stricter than the json package: unknown and repeated fields are faults, names match exactly, and it goes on after
// a fault, so that a user sees all of them at once.
type decoder struct {
	file   string
	faults []Fault
	nodes  int
	lines  map[string]int // field path -> line, for checks after decoding
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

func (d *decoder) fault(line int, path, format string, args ...any) {
	d.faults = append(d.faults, Fault{File: d.file, Line: line, Field: path, Message: fmt.Sprintf(format, args...)})
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if d.nodes++; d.nodes > maxNodes {
		if d.nodes == maxNodes+1 {
			d.fault(n.Line, path, "the document has more than %d values", maxNodes)
		}
		return
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	d.lines[path] = n.Line
	if v.Kind() != reflect.Pointer && v.CanAddr() && v.Addr().Type().Implements(unmarshaler) {
		d.custom(n, v, path)
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // as in Kubernetes: null is the same as absent
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.value(n, v.Elem(), path)
	case reflect.Struct:
		if d.want(n, yaml.MappingNode, "a mapping", path) {
			d.fields(n, v, path)
		}
	case reflect.Map:
		if d.want(n, yaml.MappingNode, "a mapping", path) {
			d.mapping(n, v, path)
		}
	case reflect.Slice:
		d.slice(n, v, path)
	default:
		if d.want(n, yaml.ScalarNode, describe(v.Kind()), path) {
			d.scalar(n, v, path)
		}
	}
}

func (d *decoder) want(n *yaml.Node, kind yaml.Kind, what, path string) bool {
	if n.Kind == kind {
		return true
	}
	d.fault(n.Line, path, "want %s, got %s", what, describeNode(n))
	return false
}

// custom lets a type that has its own JSON form (quantities, times, int-or-string) read the node.
func (d *decoder) custom(n *yaml.Node, v reflect.Value, path string) {
	data, err := json.Marshal(d.plain(n, path))
	if err == nil {
		err = v.Addr().Interface().(json.Unmarshaler).UnmarshalJSON(data)
	}
	if err != nil {
		d.fault(n.Line, path, "%s is not valid here: %s", describeNode(n), strings.TrimPrefix(err.Error(), "json: "))
	}
}

// plain is the node as the json package would have decoded it.
func (d *decoder) plain(n *yaml.Node, path string) any {
	if d.nodes++; d.nodes > maxNodes {
		return nil
	}
	switch n.Kind {
	case yaml.AliasNode:
		return d.plain(n.Alias, path)
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		d.each(n, path, func(key, val *yaml.Node, sub string) { m[key.Value] = d.plain(val, sub) })
		return m
	case yaml.SequenceNode:
		s := make([]any, 0, len(n.Content))
		for i, c := range n.Content {
			s = append(s, d.plain(c, path+"["+strconv.Itoa(i)+"]"))
		}
		return s
	}
	switch n.Tag {
	case "!!null":
		return nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err == nil {
			return v
		}
	}
	return n.Value
}

// each visits the pairs of a mapping, merge keys included, and reports repeated keys.
func (d *decoder) each(n *yaml.Node, path string, visit func(key, val *yaml.Node, sub string)) {
	seen := make(map[string]int, len(n.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		if key.Tag == "!!merge" {
			merges = append(merges, val)
			continue
		}
		sub := join(path, key.Value)
		if key.Kind != yaml.ScalarNode {
			d.fault(key.Line, path, "want a plain field name, got %s", describeNode(key))
			continue
		}
		if line, dup := seen[key.Value]; dup {
			d.fault(key.Line, sub, "the field is there twice (first in line %d)", line)
			continue
		}
		seen[key.Value] = key.Line
		visit(key, val, sub)
	}
	for _, m := range merges {
		if m.Kind == yaml.AliasNode {
			m = m.Alias
		}
		if m.Kind != yaml.MappingNode {
			d.fault(m.Line, path, "want a mapping to merge, got %s", describeNode(m))
			continue
		}
		d.each(m, path, func(key, val *yaml.Node, sub string) {
			if _, own := seen[key.Value]; !own {
				seen[key.Value] = key.Line
				visit(key, val, sub)
			}
		})
	}
}

func (d *decoder) fields(n *yaml.Node, v reflect.Value, path string) {
	known := map[string]reflect.Value{}
	collect(v, known)
	d.each(n, path, func(key, val *yaml.Node, sub string) {
		f, ok := known[key.Value]
		if !ok {
			d.fault(key.Line, sub, "unknown field%s", nearest(key.Value, known))
			return
		}
		d.value(val, f, sub)
	})
}

// collect finds the settable fields of v by JSON name, those of inlined structs included.
func collect(v reflect.Value, into map[string]reflect.Value) {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && (name == "" || opts == "inline"):
			collect(v.Field(i), into)
		case name != "-" && name != "" && f.IsExported():
			into[name] = v.Field(i)
		}
	}
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if v.IsNil() {
		v.Set(reflect.MakeMapWithSize(v.Type(), len(n.Content)/2))
	}
	d.each(n, path, func(key, val *yaml.Node, sub string) {
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(val, elem, sub)
		v.SetMapIndex(reflect.ValueOf(key.Value).Convert(v.Type().Key()), elem)
	})
}

func (d *decoder) slice(n *yaml.Node, v reflect.Value, path string) {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		data, err := base64.StdEncoding.DecodeString(n.Value)
		if n.Kind != yaml.ScalarNode || err != nil {
			d.fault(n.Line, path, "want base64 text, got %s", describeNode(n))
			return
		}
		v.SetBytes(data)
		return
	}
	if !d.want(n, yaml.SequenceNode, "a list", path) {
		return
	}
	s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		d.value(c, s.Index(i), path+"["+strconv.Itoa(i)+"]")
	}
	v.Set(s)
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	ok := false
	switch v.Kind() {
	case reflect.String:
		if ok = n.Tag == "!!str" || n.Tag == "!!timestamp"; ok {
			v.SetString(n.Value)
		} else if n.Tag == "!!int" || n.Tag == "!!float" || n.Tag == "!!bool" {
			d.fault(n.Line, path, "want a string, got %s; put it in quotes", describeNode(n))
			return
		}
	case reflect.Bool:
		var b bool
		if ok = n.Tag == "!!bool" && n.Decode(&b) == nil; ok {
			v.SetBool(b)
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		var i int64
		if ok = n.Tag == "!!int" && n.Decode(&i) == nil && !v.OverflowInt(i); ok {
			v.SetInt(i)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		var u uint64
		if ok = n.Tag == "!!int" && n.Decode(&u) == nil && !v.OverflowUint(u); ok {
			v.SetUint(u)
		}
	case reflect.Float32, reflect.Float64:
		var f float64
		if ok = (n.Tag == "!!int" || n.Tag == "!!float") && n.Decode(&f) == nil; ok {
			v.SetFloat(f)
		}
	}
	if !ok {
		d.fault(n.Line, path, "want %s, got %s", describe(v.Kind()), describeNode(n))
	}
}

func join(path, key string) string {
	switch {
	case strings.ContainsAny(key, "./[]"):
		return path + "[" + strconv.Quote(key) + "]"
	case path == "":
		return key
	}
	return path + "." + key
}

func describe(k reflect.Kind) string {
	switch k {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	}
	return "a whole number"
}

func describeNode(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	if n.Tag == "!!null" {
		return "nothing"
	}
	const most = 60
	if len(n.Value) > most {
		return strconv.Quote(n.Value[:most]) + "..."
	}
	if n.Tag == "!!str" {
		return strconv.Quote(n.Value)
	}
	return n.Value
}

// nearest suggests a known field that differs only in case, or by one letter more or less.
func nearest(name string, known map[string]reflect.Value) string {
	best := ""
	for k := range known {
		if strings.EqualFold(k, name) || (len(name) > 2 && (strings.HasPrefix(k, name) || strings.HasPrefix(name, k)) &&
			max(len(k)-len(name), len(name)-len(k)) == 1) {
			if best == "" || k < best {
				best = k
			}
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}
