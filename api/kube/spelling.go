package kube

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Slip is a label or an annotation of a Pod or Namespace that was meant for Conduit, and does not mean what was meant. It changes
// nothing by itself: what holds instead is what Says makes of it.
type Slip struct {
	Field   string // label or annotation
	Key     string
	Value   string
	Wrong   string // what is wrong with it
	Nearest string // what was meant, probably; empty: nothing is near
	Instead string // what holds
}

// String is the slip in one sentence, without the object.
func (s Slip) String() string {
	text := fmt.Sprintf("%s %s: %q %s", s.Field, s.Key, s.Value, s.Wrong)
	end := "."
	if s.Nearest != "" {
		end = ", did you mean " + s.Nearest + "?"
	}
	return text + end + " In force: " + s.Instead
}

const (
	domain     = "conduit.io"
	label      = "label"
	annotation = "annotation"
)

// meaning is what a key can say.
type meaning struct {
	field  string
	values []string // empty: it is not for people
}

var meanings = map[string]meaning{
	LabelMesh:         {label, []string{Enabled, Disabled}},
	LabelInstallation: {label, nil},
	AnnotationMode:    {annotation, []string{string(mesh.Permissive), string(mesh.Strict)}},
	AnnotationDown:    {annotation, []string{string(mesh.DownClosed), string(mesh.DownOpen)}},
}

// alike is what people write for another word.
var alike = map[string]string{"true": Enabled, "yes": Enabled, "on": Enabled, "1": Enabled, "false": Disabled, "no": Disabled, "off": Disabled, "0": Disabled}

const (
	maxSlips = 8  // of an object: annotations may be many
	maxValue = 64 // bytes of a value that are shown: they may be long
)

// Slips finds what is misspelt on o, a Pod or a Namespace, labels first, in the order of keys; the first few of many.
func Slips(o metav1.Object) []Slip {
	_, isPod := o.(*corev1.Pod)
	var out []Slip
	for _, part := range []struct {
		field string
		all   map[string]string
	}{{label, o.GetLabels()}, {annotation, o.GetAnnotations()}} {
		var mine []string
		for key := range part.all {
			if ours(key) {
				mine = append(mine, key)
			}
		}
		slices.Sort(mine)
		for _, key := range mine {
			if s, wrong := slip(part.field, key, part.all[key], isPod); wrong && len(out) < maxSlips {
				if len(s.Value) > maxValue {
					s.Value = strings.ToValidUTF8(s.Value[:maxValue], "") + "..."
				}
				out = append(out, s)
			}
		}
	}
	return out
}

// Known reports whether key is one of Conduit's, as a label or as an annotation.
func Known(key string) bool {
	_, ok := meanings[key]
	return ok
}

// ours reports whether a key was meant for Conduit: its domain is Conduit's, or all of it is nearly a key of Conduit's.
func ours(key string) bool {
	at, name, ok := strings.Cut(key, "/")
	if !ok || len(at) < len(domain)-2 || len(at) > len(domain)+2 {
		return false
	}
	return at == domain || apart(strings.ToLower(at), domain) <= 2 && nearestKey(domain+"/"+name) != ""
}

func slip(field, key, value string, isPod bool) (Slip, bool) {
	s := Slip{Field: field, Key: key, Value: value}
	m, known := meanings[key]
	switch {
	case !known:
		s.Wrong, s.Nearest, s.Instead = "is none of Conduit's", nearestKey(key), "as if it were not there."
		if s.Nearest != "" && meanings[s.Nearest].field != field {
			s.Nearest = "the " + meanings[s.Nearest].field + " " + s.Nearest
		}
	case m.field != field:
		s.Wrong, s.Nearest, s.Instead = "means nothing there", "the "+m.field+" "+key, "as if it were not there."
	case len(m.values) == 0 || slices.Contains(m.values, value):
		return Slip{}, false
	default:
		s.Wrong, s.Nearest, s.Instead = "is neither "+strings.Join(m.values, " nor "), nearest(value, m.values), instead(key, value, isPod)
	}
	return s, true
}

// instead is what Says makes of a value that is not known.
func instead(key, value string, isPod bool) string {
	switch {
	case value != "" && key == AnnotationMode:
		return string(mesh.Strict) + ", plaintext is refused."
	case value != "" && key == AnnotationDown:
		return string(mesh.DownClosed) + ", without a proxy connections are refused."
	case key == LabelMesh && !isPod:
		return "the namespace is not in the mesh."
	case isPod:
		return "what its namespace says."
	}
	return "as if it were not there."
}

// nearestKey is the key of Conduit's for people that a misspelt one is nearly, or whose name its own is a part of; empty: none.
func nearestKey(key string) string {
	var known []string
	for _, k := range slices.Sorted(maps.Keys(meanings)) {
		if len(meanings[k].values) > 0 {
			known = append(known, k)
		}
	}
	key = strings.ToLower(key)
	if k := closest(key, known, 2); k != "" {
		return k
	}
	_, name, _ := strings.Cut(key, "/")
	for _, k := range known {
		if _, want, _ := strings.Cut(k, "/"); len(name) >= 4 && (strings.HasPrefix(want, name) || strings.HasPrefix(name, want)) {
			return k
		}
	}
	return ""
}

// nearest is the value that was meant, probably; empty: any may have been.
func nearest(value string, values []string) string {
	if v := alike[strings.ToLower(value)]; slices.Contains(values, v) {
		return v
	}
	return closest(value, values, len(value)/2)
}

// closest is the one of all from which s is fewest letters apart, case aside, and at most so many.
func closest(s string, all []string, most int) string {
	best := ""
	for _, one := range all {
		if d := apart(strings.ToLower(s), strings.ToLower(one)); d <= most {
			best, most = one, d-1
		}
	}
	return best
}

// apart is the number of letters to put in, take out or change to make a of b. Keys and values of labels are short; of what is long
// only the length counts.
func apart(a, b string) int {
	const long = 64
	if len(a) > long || len(b) > long {
		return long
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := last
			if a[i] != b[j] {
				change++
			}
			last = row[j+1]
			row[j+1] = min(change, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
