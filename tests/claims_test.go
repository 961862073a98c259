package tests

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	testName  = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w*`)
	claimWord = regexp.MustCompile("`([^`]+)`|" + testName.String())
	makeName  = regexp.MustCompile(`(?m)^([a-z0-9-]+):`)
)

// functions are the tests of the module, by directory.
func functions(t *testing.T) map[string]map[string]bool {
	t.Helper()
	out := map[string]map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir := strings.TrimPrefix(filepath.Dir(path), "../")
		if out[dir] == nil {
			out[dir] = map[string]bool{}
		}
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			out[dir][string(m[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// missing are what a cell of README's table names as proof and is not there: tests of the package before them, packages
// without a test, targets of make.
func missing(cell string, tests map[string]map[string]bool, targets map[string]bool) []string {
	var out []string
	dir := ""
	for _, m := range claimWord.FindAllStringSubmatch(cell, -1) {
		word := m[1]
		if word == "" {
			if !tests[dir][m[0]] {
				out = append(out, dir+" "+m[0])
			}
			continue
		}
		target, isMake := strings.CutPrefix(word, "make ")
		switch {
		case isMake && !targets[target]:
			out = append(out, word)
		case isMake, strings.HasPrefix(word, "conduit "):
		default:
			dir = word
			if len(tests[dir]) == 0 {
				out = append(out, "a test in "+dir)
			}
		}
	}
	return out
}

// TestClaims: what README's table says is proven is so by tests that are there.
func TestClaims(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	tests, targets := functions(t), map[string]bool{}
	for _, m := range makeName.FindAllSubmatch(makefile, -1) {
		targets[string(m[1])] = true
	}
	_, table, found := strings.Cut(string(readme), "| | proven by |\n|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := strings.Split(table, "\n")
	if !found || len(rows) < 10 {
		t.Fatalf("README has no table of what works, or it has another form: %q", table)
	}
	for _, row := range rows {
		cells := strings.Split(strings.Trim(row, "| "), " | ")
		if len(cells) != 2 || !claimWord.MatchString(cells[1]) {
			t.Errorf("nothing proves %q", row)
			continue
		}
		for _, m := range missing(cells[1], tests, targets) {
			t.Errorf("%q is to be proven by %s, which is not there", cells[0], m)
		}
	}
	for cell, want := range map[string]int{"`tests` TestClaims; `make test`": 0, "`tests` TestNobody": 1, "`nowhere` TestClaims": 2, "`make nothing`": 1} {
		if got := missing(cell, tests, targets); len(got) != want {
			t.Errorf("of %q is missing %q", cell, got)
		}
	}
}

// TestNamedTestsExist: every test that a page speaks of is there.
func TestNamedTestsExist(t *testing.T) {
	all := map[string]bool{}
	for _, names := range functions(t) {
		for name := range names {
			all[name] = true
		}
	}
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("pages %v, %v", pages, err)
	}
	for _, page := range append(pages, "../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range testName.FindAllString(string(text), -1) {
			if !all[name] {
				t.Errorf("%s speaks of %s, which is not there", page, name)
			}
		}
	}
}
