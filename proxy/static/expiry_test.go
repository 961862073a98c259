package static

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/proxy/meter"
)

// Each certificate is worth two lines of the log: that its end is near, and that it has come.
func TestWarnOfEnds(t *testing.T) {
	var out bytes.Buffer
	now := time.Now()
	s := &Server{log: slog.New(slog.NewTextHandler(&out, nil)), warned: make([]int, 2)}
	s.process.Certificates = []meter.Certificate{{Name: "one", End: now.Add(48 * time.Hour)}, {Name: "two", End: now.Add(96 * time.Hour)}}
	for _, c := range []struct {
		after time.Duration
		want  string
	}{{0, ""}, {25 * time.Hour, "expires soon"}, {26 * time.Hour, ""}, {48 * time.Hour, "has expired"}, {49 * time.Hour, ""}} {
		out.Reset()
		s.warnOfEnds(now.Add(c.after))
		got := out.String()
		if c.want == "" && got != "" || c.want != "" && (strings.Count(got, "\n") != 1 || !strings.Contains(got, c.want) || !strings.Contains(got, "certificate=one")) {
			t.Errorf("after %v: %q, want %q", c.after, got, c.want)
		}
	}
}
