package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// PluginType is how configurations name the plugin, and the name of its binary.
const PluginType = "conduit-cni"

// errConfig is wrapped by every error about a configuration that cannot be chained to. The file is left as it is.
var errConfig = errors.New("cannot chain to this configuration")

func configError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errConfig, fmt.Sprintf(format, args...))
}

// span is a range of bytes in a file.
type span struct{ start, end int }

// list is what must be known of a configuration list to edit its bytes.
type list struct {
	data    []byte
	plugins []span // the elements of "plugins"
	ours    []bool
	version string
	name    string
}

// parseList reads the bytes of a .conflist file.
func parseList(data []byte) (*list, error) {
	if !json.Valid(data) {
		return nil, configError("it is not valid JSON (%v)", jsonError(data))
	}
	l := &list{data: data}
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, configError("it is not a JSON object")
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, configError("%v", err)
		}
		key, ok := t.(string)
		if !ok {
			return nil, configError("a key is no string")
		}
		if seen[key] {
			return nil, configError("the field %q is there twice", key)
		}
		seen[key] = true
		if err := l.field(dec, key); err != nil {
			return nil, err
		}
	}
	if !seen["plugins"] || len(l.plugins) == 0 {
		return nil, configError(`it has no plugins in "plugins"`)
	}
	return l, checkVersion(l.version)
}

func jsonError(data []byte) error {
	var v any
	return json.Unmarshal(data, &v)
}

// field reads the value of a top-level field.
func (l *list) field(dec *json.Decoder, key string) error {
	switch key {
	case "plugins":
		return l.elements(dec)
	case "cniVersion":
		if err := dec.Decode(&l.version); err != nil {
			return configError(`"cniVersion" is not a string`)
		}
	case "name":
		if err := dec.Decode(&l.name); err != nil {
			return configError(`"name" is not a string`)
		}
	default:
		var skip json.RawMessage
		if err := dec.Decode(&skip); err != nil {
			return configError("%v", err)
		}
	}
	return nil
}

// elements notes where the elements of "plugins" are.
func (l *list) elements(dec *json.Decoder) error {
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return configError(`"plugins" is not an array`)
	}
	for dec.More() {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return configError("%v", err)
		}
		end := int(dec.InputOffset())
		kind, err := pluginType(raw)
		if err != nil {
			return err
		}
		l.plugins = append(l.plugins, span{end - len(raw), end})
		l.ours = append(l.ours, kind == PluginType)
	}
	_, err := dec.Token()
	if err != nil && !errors.Is(err, io.EOF) {
		return configError("%v", err)
	}
	return nil
}

// pluginType is the "type" of a plugin's configuration. Names are compared exactly, as libcni does.
func pluginType(raw []byte) (string, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return "", configError("a plugin is not an object")
	}
	var kind string
	if err := json.Unmarshal(fields["type"], &kind); err != nil || kind == "" {
		return "", configError(`a plugin has no "type"`)
	}
	return kind, nil
}

// checkVersion refuses versions of the specification before 0.3.1, in which results are not passed along a chain.
func checkVersion(version string) error {
	parts := strings.Split(version, ".")
	var n [3]int
	for i := range n {
		if i >= len(parts) {
			return configError(`"cniVersion" is %q`, version)
		}
		v, err := strconv.Atoi(parts[i])
		if err != nil {
			return configError(`"cniVersion" is %q`, version)
		}
		n[i] = v
	}
	if n[0] == 0 && (n[1] < 3 || n[1] == 3 && n[2] < 1) {
		return configError(`"cniVersion" is %q: a chain needs 0.3.1 or later`, version)
	}
	return nil
}

// addEntry returns the list with exactly one entry of ours, equal to entry and behind another plugin. A list that has it already is
// returned as it is, in the same slice.
func addEntry(data, entry []byte) ([]byte, error) {
	l, err := parseList(data)
	if err != nil {
		return nil, err
	}
	have := 0
	for i, ours := range l.ours {
		if !ours {
			continue
		}
		have++
		if i == 0 || !sameJSON(data[l.plugins[i].start:l.plugins[i].end], entry) {
			have = len(l.ours) + 1
		}
	}
	if have == 1 {
		return data, nil
	}
	if have > 0 {
		if data, err = removeEntries(data); err != nil {
			return nil, err
		}
		if l, err = parseList(data); err != nil {
			return nil, err
		}
	}
	last := l.plugins[len(l.plugins)-1]
	out := bytes.Clone(data[:last.end])
	out = append(out, ',')
	out = append(out, l.gap(len(l.plugins)-1)...)
	out = append(out, entry...)
	return append(out, data[last.end:]...), nil
}

// gap is the white space before plugin i, which a person who writes one more would repeat.
func (l *list) gap(i int) []byte {
	end := l.plugins[i].start
	start := end
	for start > 0 && strings.IndexByte(" \t\r\n", l.data[start-1]) >= 0 {
		start--
	}
	return l.data[start:end]
}

// removeEntries returns the list without entries of ours, in the same slice if there are none. Of the bytes that are
// left, none changes.
func removeEntries(data []byte) ([]byte, error) {
	l, err := parseList(data)
	if err != nil {
		return nil, err
	}
	first := slices.Index(l.ours, false)
	if first < 0 {
		return nil, configError("it has no plugin but %s", PluginType)
	}
	var cut []span
	if first > 0 { // with the comma and white space that follow
		cut = append(cut, span{l.plugins[0].start, l.plugins[first].start})
	}
	for i := first + 1; i < len(l.ours); i++ {
		if l.ours[i] {
			cut = append(cut, span{l.plugins[i-1].end, l.plugins[i].end})
		}
	}
	if len(cut) == 0 {
		return data, nil
	}
	out, at := []byte{}, 0
	for _, c := range cut {
		out = append(out, data[at:c.start]...)
		at = c.end
	}
	return append(out, data[at:]...), nil
}

// listOf returns a configuration list of one plugin's configuration, whose bytes are in it as they are, and our entry.
func listOf(conf, entry []byte) ([]byte, error) {
	if !json.Valid(conf) {
		return nil, configError("it is not valid JSON (%v)", jsonError(conf))
	}
	var head map[string]json.RawMessage
	if err := json.Unmarshal(conf, &head); err != nil {
		return nil, configError("it is not a JSON object")
	}
	var name, version string
	if err := json.Unmarshal(head["name"], &name); err != nil || name == "" {
		return nil, configError(`it has no "name"`)
	}
	if err := json.Unmarshal(head["cniVersion"], &version); err != nil {
		return nil, configError(`it has no "cniVersion"`)
	}
	if err := checkVersion(version); err != nil {
		return nil, err
	}
	if _, ok := head["plugins"]; ok {
		return nil, configError(`it has "plugins", but its name does not end in .conflist`)
	}
	kind, err := pluginType(conf)
	if err != nil {
		return nil, err
	}
	if kind == PluginType {
		return nil, configError("%s is no primary plugin", PluginType)
	}
	out := fmt.Appendf(nil, "{\n  \"cniVersion\": %s,\n  \"name\": %s,\n  \"plugins\": [\n    ", head["cniVersion"], head["name"])
	out = append(out, bytes.TrimSpace(conf)...)
	out = append(out, ",\n    "...)
	out = append(out, entry...)
	return append(out, "\n  ]\n}\n"...), nil
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
