package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

//go:embed page.md.tmpl
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is what the template gets.
type page struct {
	*Run
	Took     string // how long it did
	Versions string
	Pictures []string
	Tables   string
}

// Page is the page about r.
func (r *Run) Page() ([]byte, error) {
	var tables bytes.Buffer
	for _, t := range r.Tables() {
		t.Markdown(&tables)
	}
	p := page{
		Run: r, Took: took(r.Seconds), Versions: r.versions(),
		Pictures: slices.Sorted(maps.Keys(r.Plots())), Tables: tables.String(),
	}
	var out bytes.Buffer
	if err := pageTemplate.Execute(&out, p); err != nil {
		return nil, fmt.Errorf("write the page: %w", err)
	}
	return out.Bytes(), nil
}

func took(seconds float64) string {
	if seconds < 5400 {
		return fmt.Sprintf("%.0f minutes", seconds/60)
	}
	return fmt.Sprintf("%.1f hours", seconds/3600)
}

// Count is how many goals have that verdict.
func (r *Run) Count(verdict string) int {
	n := 0
	for _, g := range r.Goals {
		if g.Verdict == verdict {
			n++
		}
	}
	return n
}

func (r *Run) versions() string {
	var out []string
	for _, p := range r.Peers {
		if p.Version != "" && p.Hops == 1 && p.Name != one {
			out = append(out, p.Title+" "+strings.TrimPrefix(p.Version, "v"))
		}
	}
	return strings.Join(out, ", ")
}

// Publish writes the page, the plots and the results into the directory of the documentation.
func (r *Run) Publish(docs string) error {
	dir := filepath.Join(docs, "bench")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	text, err := r.Page()
	if err != nil {
		return err
	}
	files := r.Plots()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(docs, "benchmarks.md"), text, 0o644); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return r.Write(filepath.Join(dir, "results.json"))
}
