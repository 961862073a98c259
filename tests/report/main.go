// Command report reads `go test -json` from standard input and writes what a person wants: a line per package, the
// whole output of what failed, every skip with its reason, and the totals.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

type totals struct {
	passed, failed, skipped int
	skips                   []string
	output                  map[string]*strings.Builder // by package and test, until its verdict
}

func main() {
	t := totals{output: map[string]*strings.Builder{}}
	if err := t.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
	for _, s := range t.skips {
		fmt.Println("SKIPPED", s)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	if t.failed > 0 || t.passed == 0 {
		os.Exit(1)
	}
}

func (t *totals) read(r io.Reader) error {
	for dec := json.NewDecoder(r); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read go test -json: %w", err)
		}
		t.event(e)
	}
}

func (t *totals) event(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		b := t.output[key]
		if b == nil {
			b = new(strings.Builder)
			t.output[key] = b
		}
		b.WriteString(e.Output)
		return
	case "pass", "fail", "skip", "build-fail":
	default:
		return
	}
	text := ""
	if b := t.output[key]; b != nil {
		text = b.String()
		delete(t.output, key)
	}
	t.verdict(e, text)
}

func (t *totals) verdict(e event, text string) {
	took := time.Duration(e.Elapsed * float64(time.Second)).Round(10 * time.Millisecond)
	switch {
	case e.Action == "build-fail":
		t.failed++
		fmt.Print(text)
	case e.Test == "" && e.Action == "fail":
		t.failed++ // a package that failed as a whole: a build, a panic, a leak
		fmt.Printf("FAIL  %s  %s\n%s", e.Package, took, text)
	case e.Test == "" && e.Action == "pass":
		fmt.Printf("ok    %s  %s\n", e.Package, took)
	case e.Action == "fail":
		t.failed++
		fmt.Printf("--- FAIL %s %s  %s\n%s", e.Package, e.Test, took, text)
	case e.Action == "skip" && e.Test != "":
		t.skipped++
		t.skips = append(t.skips, e.Package+" "+e.Test+": "+reason(text))
	case e.Action == "pass":
		t.passed++
	}
}

// reason is the text that a skipped test gave.
func reason(output string) string {
	for _, line := range strings.Split(output, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			return line
		}
	}
	return "no reason given"
}
