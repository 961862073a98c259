// Package stopwatch measures what a plugin costs in a chain of CNI plugins: with stopwatches (package plugin) before and behind it.
package stopwatch

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Package is the plugin's import path, for builds. Its name in a chain is Type.
const (
	Package = "conduit.io/conduit/tests/stopwatch/plugin"
	Type    = "stopwatch"
)

// Around puts stopwatches into a chain of plugins: one before the plugin of type timed, and two behind it, which time themselves. They
// write into dir.
func Around(plugins []any, timed, dir string) ([]any, error) {
	at := slices.IndexFunc(plugins, func(p any) bool {
		plugin, ok := p.(map[string]any)
		return ok && plugin["type"] == timed
	})
	if at < 0 {
		return nil, fmt.Errorf("the chain has no %s: %v", timed, plugins)
	}
	watch := func(mark string) any { return map[string]any{"type": Type, "dir": dir, "mark": mark} }
	return slices.Insert(slices.Insert(slices.Clone(plugins), at+1, watch("b"), watch("c")), at, watch("a")), nil
}

// Times are how long the ADDs of some pods took: of the timed plugin, and of a stopwatch, which does nothing. Both have the start of a process
// in them. The i-th of both are of the same pod.
type Times struct{ Plugin, Empty []time.Duration }

// Take reads what stopwatches have written into dir, and removes it there.
func Take(dir string) (Times, error) {
	var t Times
	files, err := filepath.Glob(filepath.Join(dir, "*.c"))
	if err != nil {
		return t, err
	}
	for _, f := range files {
		var at [3]int64
		for i, mark := range []string{"a", "b", "c"} {
			name := strings.TrimSuffix(f, "c") + mark
			data, err := os.ReadFile(name)
			if err == nil {
				at[i], err = strconv.ParseInt(string(data), 10, 64)
			}
			if err == nil {
				err = os.Remove(name)
			}
			if err != nil {
				return t, err
			}
		}
		t.Plugin, t.Empty = append(t.Plugin, time.Duration(at[1]-at[0])), append(t.Empty, time.Duration(at[2]-at[1]))
	}
	return t, nil
}

// Add takes in other pods.
func (t *Times) Add(o Times) {
	t.Plugin, t.Empty = append(t.Plugin, o.Plugin...), append(t.Empty, o.Empty...)
}

// Added is what the plugin takes at a quantile, less what one that does nothing typically takes.
func (t *Times) Added(q float64) time.Duration { return quantile(t.Plugin, q) - quantile(t.Empty, 0.5) }

// Report gives both distributions, and what the plugin adds, in milliseconds.
func (t *Times) Report(b *testing.B) {
	for name, q := range map[string]float64{"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1} {
		b.ReportMetric(ms(t.Added(q)), "added-"+name+"-ms")
		b.ReportMetric(ms(quantile(t.Plugin, q)), "plugin-"+name+"-ms")
		b.ReportMetric(ms(quantile(t.Empty, q)), "empty-"+name+"-ms")
	}
	b.ReportMetric(0, "ns/op") // says nothing
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// quantile is the least of all that so large a part of them does not exceed (nearest rank).
func quantile(all []time.Duration, q float64) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[max(0, int(math.Ceil(q*float64(len(all))))-1)]
}
