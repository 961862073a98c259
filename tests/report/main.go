// Command report reads `go test -json` from standard input and writes what a person wants: a line per package, the
// whole output of what failed, every skip with its reason, and the totals. With -tests every test has a line, too, with -log a file gets
// the whole output, as `go test -v` would write it, while it comes.
package main

import (
	"encoding/json"
	"errors"
	"flag"
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

	out, log io.Writer
	tests    bool // a line for each
}

func main() {
	tests := flag.Bool("tests", false, "a line for every test, but for subtests")
	log := flag.String("log", "", "`FILE` for the whole output")
	flag.Parse()
	good, err := run(os.Stdin, os.Stdout, *tests, *log)
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
	}
	if !good || err != nil {
		os.Exit(1)
	}
}

// run is good when tests have passed, and none has failed.
func run(in io.Reader, out io.Writer, tests bool, log string) (good bool, err error) {
	t := totals{output: map[string]*strings.Builder{}, out: out, log: io.Discard, tests: tests}
	if log != "" {
		f, err := os.Create(log)
		if err != nil {
			return false, err
		}
		defer f.Close()
		t.log = f
	}
	if err := t.read(in); err != nil {
		return false, err
	}
	for _, s := range t.skips {
		fmt.Fprintln(out, "SKIPPED", s)
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	return t.failed == 0 && t.passed > 0, nil
}

func (t *totals) read(r io.Reader) error {
	for dec := json.NewDecoder(r); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read go test -json: %w", err)
		}
		if _, err := io.WriteString(t.log, e.Output); err != nil {
			return err
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
		fmt.Fprint(t.out, text)
	case e.Test == "" && e.Action == "fail":
		t.failed++ // a package that failed as a whole: a build, a panic, a leak
		fmt.Fprintf(t.out, "FAIL  %s  %s\n%s", e.Package, took, text)
	case e.Test == "" && e.Action == "pass":
		fmt.Fprintf(t.out, "ok    %s  %s\n", e.Package, took)
	case e.Action == "fail":
		t.failed++
		fmt.Fprintf(t.out, "--- FAIL %s %s  %s\n%s", e.Package, e.Test, took, text)
	case e.Action == "skip" && e.Test != "":
		t.skipped++
		t.skips = append(t.skips, e.Package+" "+e.Test+": "+reason(text))
	case e.Action == "pass":
		t.passed++
		if t.tests && e.Test != "" && !strings.Contains(e.Test, "/") {
			fmt.Fprintf(t.out, "      %s  %s\n", e.Test, took)
		}
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
