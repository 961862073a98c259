// Package metrics reads what agents say about their nodes: the Prometheus text format, differences between two
// readings, and the edges (who calls whom, how well) that they add up to.
package metrics

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// counter reports whether a name is a counter's or a histogram's, by the suffixes that Prometheus prescribes.
func counter(name string) bool {
	for _, suffix := range []string{"_total", "_bucket", "_count", "_sum"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// Sample is one value of one series.
type Sample struct {
	Name   string
	Labels map[string]string
	Value  float64
	series string // name and labels as they were written: equal for equal series of one writer
}

// Parse reads the Prometheus text exposition format, version 0.0.4. Comments and timestamps are dropped.
func Parse(r io.Reader) ([]Sample, error) {
	var out []Sample
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		s, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("metrics line %d: %w", n, err)
		}
		out = append(out, s)
	}
	return out, sc.Err()
}

func parseLine(line string) (Sample, error) {
	end := strings.IndexAny(line, "{ \t")
	if end <= 0 {
		return Sample{}, fmt.Errorf("no value in %q", line)
	}
	s := Sample{Name: line[:end]}
	rest := line[end:]
	if rest[0] == '{' {
		var err error
		if s.Labels, rest, err = parseLabels(rest[1:]); err != nil {
			return Sample{}, err
		}
	}
	s.series = line[:len(line)-len(rest)]
	fields := strings.Fields(rest)
	if len(fields) < 1 || len(fields) > 2 {
		return Sample{}, fmt.Errorf("want a value and perhaps a timestamp after %q", s.series)
	}
	v, err := strconv.ParseFloat(fields[0], 64)
	if err != nil {
		return Sample{}, fmt.Errorf("value of %q: %w", s.series, err)
	}
	s.Value = v
	return s, nil
}

// parseLabels reads up to and including the closing brace, and returns what follows it.
func parseLabels(in string) (map[string]string, string, error) {
	labels := map[string]string{}
	for {
		in = strings.TrimLeft(in, " ,")
		if strings.HasPrefix(in, "}") {
			return labels, in[1:], nil
		}
		name, rest, ok := strings.Cut(in, "=")
		rest = strings.TrimLeft(rest, " ")
		if !ok || !strings.HasPrefix(rest, `"`) {
			return nil, "", fmt.Errorf("bad label at %q", in)
		}
		value, after, err := parseQuoted(rest[1:])
		if err != nil {
			return nil, "", err
		}
		labels[strings.TrimSpace(name)] = value
		in = after
	}
}

func parseQuoted(in string) (value, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(in); i++ {
		switch c := in[i]; {
		case c == '"':
			return b.String(), in[i+1:], nil
		case c == '\\' && i+1 < len(in):
			i++
			if in[i] == 'n' {
				b.WriteByte('\n')
			} else {
				b.WriteByte(in[i]) // \\ and \" are the only others
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", "", fmt.Errorf("label value without closing quote: %q", in)
}

// Since returns how much each counter of now has grown since before. Both must come from one agent. A counter that
// fell was restarted, and counts from zero. Gauges stay as they are.
func Since(before, now []Sample) []Sample {
	old := make(map[string]float64, len(before))
	for _, s := range before {
		old[s.series] = s.Value
	}
	out := make([]Sample, len(now))
	for i, s := range now {
		if v := old[s.series]; v <= s.Value && counter(s.Name) {
			s.Value -= v
		}
		out[i] = s
	}
	return out
}

// Sum adds the values of every sample of a name that match accepts.
func Sum(samples []Sample, name string, match func(labels map[string]string) bool) float64 {
	total := 0.0
	for _, s := range samples {
		if s.Name == name && match(s.Labels) {
			total += s.Value
		}
	}
	return total
}

// Totals adds readings of one agent up, across restarts of what it reads from: its counters never fall. The zero
// Totals is ready; it is not safe for concurrent use.
type Totals struct {
	series map[string]*total
	order  []string
	Resets int // how many readings had a counter that fell
}

type total struct {
	sample    Sample
	last, sum float64
}

// Add takes a reading in.
func (t *Totals) Add(reading []Sample) {
	if t.series == nil {
		t.series = map[string]*total{}
	}
	for _, c := range t.series {
		if !counter(c.sample.Name) {
			c.sum = 0 // unless the reading says otherwise
		}
	}
	reset := false
	for _, s := range reading {
		c := t.series[s.series]
		if c == nil {
			c = &total{}
			t.series[s.series] = c
			t.order = append(t.order, s.series)
		}
		switch {
		case !counter(s.Name):
			c.sum = s.Value
		case s.Value < c.last:
			reset = true
			c.sum += s.Value
		default:
			c.sum += s.Value - c.last
		}
		c.sample, c.last = s, s.Value
	}
	if reset {
		t.Resets++
	}
}

// Samples are the totals as of the last reading.
func (t *Totals) Samples() []Sample {
	out := make([]Sample, 0, len(t.order))
	for _, name := range t.order {
		s := t.series[name].sample
		s.Value = t.series[name].sum
		out = append(out, s)
	}
	return out
}
