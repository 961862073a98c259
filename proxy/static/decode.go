package static

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// decoder reads JSON values one field at a time, so that an error can name the field. The first error stays.
type decoder struct{ err error }

// ErrConfig is wrapped by every error about the content of a configuration.
var ErrConfig = errors.New("bad configuration")

func (d *decoder) fail(path, format string, args ...any) {
	if d.err != nil {
		return
	}
	msg := fmt.Sprintf(format, args...)
	if path != "" {
		msg = path + ": " + msg
	}
	d.err = fmt.Errorf("%w: %s", ErrConfig, msg)
}

func (d *decoder) object(path string, raw []byte, known ...string) map[string]json.RawMessage {
	if d.err != nil {
		return nil
	}
	var o map[string]json.RawMessage
	if err := json.Unmarshal(raw, &o); err != nil {
		d.fail(path, "%s", explain(raw, err))
		return nil
	}
	if o == nil {
		d.fail(path, "want an object")
	}
	prefix := path
	if prefix != "" {
		prefix += "."
	}
	if k, ok := repeated(raw); ok {
		d.fail(prefix+k, "is given twice")
	}
	names := make([]string, 0, len(o))
	for k := range o {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		if !slices.Contains(known, k) {
			d.fail(prefix+k, "unknown field; known are %s", strings.Join(known, ", "))
		}
		if bytes.Equal(o[k], []byte("null")) {
			delete(o, k)
		}
	}
	return o
}

// repeated is the first field that occurs twice in the object raw, which is valid JSON.
func repeated(raw []byte) (string, bool) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	_, _ = dec.Token() // the brace
	seen := map[string]bool{}
	for dec.More() {
		t, _ := dec.Token()
		k, _ := t.(string)
		if seen[k] {
			return k, true
		}
		seen[k] = true
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			break
		}
	}
	return "", false
}

// explain gives a syntax error its line and column.
func explain(raw []byte, err error) string {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return "want an object"
	}
	before := raw[:min(int(syntax.Offset), len(raw))]
	line := 1 + bytes.Count(before, []byte("\n"))
	return fmt.Sprintf("line %d, column %d: %v", line, len(before)-bytes.LastIndexByte(before, '\n')-1, syntax)
}

func (d *decoder) array(path string, raw []byte) []json.RawMessage {
	if d.err != nil || raw == nil {
		return nil
	}
	var a []json.RawMessage
	if err := json.Unmarshal(raw, &a); err != nil {
		d.fail(path, "want an array")
	}
	return a
}

func (d *decoder) text(path string, raw []byte) string {
	if d.err != nil || raw == nil {
		return ""
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		d.fail(path, "want a string")
	} else if s == "" {
		d.fail(path, "is empty")
	}
	return s
}

// choice is one of the values; the first is the default.
func (d *decoder) choice(path string, raw []byte, values ...string) string {
	s := d.text(path, raw)
	if s == "" {
		return values[0]
	}
	if !slices.Contains(values, s) {
		d.fail(path, "%q is not one of %s", s, strings.Join(values, ", "))
	}
	return s
}

func (d *decoder) addrPort(path string, raw []byte, required bool) netip.AddrPort {
	s := d.text(path, raw)
	if s == "" {
		if required {
			d.fail(path, "is missing; want ADDRESS:PORT, as in 127.0.0.1:8000")
		}
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		d.fail(path, "%q is not ADDRESS:PORT with a numeric address, as in 127.0.0.1:8000", s)
	}
	return a
}

// duration is a positive one, or 0 when there is none.
func (d *decoder) duration(path string, raw []byte) time.Duration {
	s := d.text(path, raw)
	if s == "" {
		return 0
	}
	v, err := time.ParseDuration(s)
	if err != nil || v <= 0 {
		d.fail(path, "%q is not a duration, as in 1.5s or 5m", s)
	}
	return v
}

// file is the path of a file that can be read.
func (d *decoder) file(path string, raw []byte) string {
	name := d.text(path, raw)
	if name == "" {
		return ""
	}
	f, err := os.Open(name)
	if err != nil {
		d.fail(path, "%v", err)
		return ""
	}
	f.Close()
	return name
}
