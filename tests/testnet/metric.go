package testnet

import (
	"fmt"
	"strconv"
	"strings"
)

// sumSeries adds up the matching lines of a Prometheus text exposition (format 0.0.4).
func sumSeries(text, name string, parts []string) (float64, error) {
	sum := 0.0
	for line := range strings.Lines(text) {
		series, value, ok := cutValue(strings.TrimSpace(line))
		metric, labels, _ := strings.Cut(series, "{")
		if !ok || metric != name || !containsAll(labels, parts) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("parse metric line %q: %w", line, err)
		}
		sum += v
	}
	return sum, nil
}

// cutValue splits "name{labels} value"; label values may contain spaces.
func cutValue(line string) (series, value string, ok bool) {
	if line == "" || line[0] == '#' {
		return "", "", false
	}
	i := strings.LastIndexByte(line, ' ')
	if i < 0 {
		return "", "", false
	}
	return line[:i], line[i+1:], true
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}
