package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"conduit.io/conduit/tests/kernels/plan"
)

// result is what the tests did under one kernel, read from its console.
type result struct {
	kernel  string
	out     io.Writer // gets every line of the console
	release string    // what uname says; "" if it did not boot
	onBoot  func()
	suites  int      // that are to run
	began   []string // suites
	passed  []string // suites
	earlier int      // good when the last suite began

	good    int // tests and subtests
	bad     []string
	skipped []string
	broken  []string
	done    bool
	took    time.Duration
}

func newResult(kernel string, suites int, out io.Writer) *result {
	return &result{kernel: kernel, suites: suites, out: out, onBoot: func() {}}
}

// read follows a console to its end.
func (r *result) read(console io.Reader) error {
	for lines := bufio.NewReader(console); ; {
		text, err := lines.ReadString('\n')
		if text = strings.TrimRight(text, "\r\n"); text != "" {
			label := r.release
			if label == "" {
				label = r.kernel
			}
			fmt.Fprintf(r.out, "%s | %s\n", label, text)
			r.line(text)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the console: %w", err)
		}
	}
}

func (r *result) line(text string) {
	// A message of the kernel or a test without a newline may stand before it.
	if _, mark, ok := strings.Cut(text, plan.Mark); ok {
		r.mark(mark)
		return
	}
	if strings.Contains(text, "Kernel panic - ") {
		r.broken = append(r.broken, text)
	}
	verdict, name, _ := strings.Cut(strings.TrimSpace(text), ": ")
	switch verdict {
	case "--- PASS":
		r.good++
	case "--- FAIL":
		r.bad = append(r.bad, name)
	case "--- SKIP":
		r.skipped = append(r.skipped, name)
	}
}

// mark is a line of the guest's own.
func (r *result) mark(text string) {
	word, rest, _ := strings.Cut(text, " ")
	switch word {
	case plan.Booted:
		r.release = rest
		r.onBoot()
	case plan.Began:
		r.began, r.earlier = append(r.began, rest), r.good
	case plan.Passed:
		if r.passed = append(r.passed, rest); r.good == r.earlier {
			r.broken = append(r.broken, rest+": no test passed: all were skipped, or none was there")
		}
	case plan.Failed, plan.Broken:
		r.broken = append(r.broken, rest)
	case plan.Done:
		r.done = true
	}
}

// err is nil if every suite ran to its end and every test passed, and there was one.
func (r *result) err() error {
	switch {
	case len(r.broken) > 0:
		return errors.New(strings.Join(r.broken, "; "))
	case r.release == "":
		return errors.New("the kernel did not boot: it ended before its first process spoke")
	case !r.done:
		return fmt.Errorf("the kernel ended before its tests did (begun: %s)", strings.Join(r.began, ", "))
	case len(r.bad) > 0:
		return errors.New("tests failed")
	case len(r.passed) != r.suites:
		return fmt.Errorf("%d of %d suites ran", len(r.passed), r.suites)
	}
	return nil
}

// String is a line, and one more for everything that did not pass.
func (r *result) String() string {
	var s strings.Builder
	verdict := "ok  "
	if r.err() != nil {
		verdict = "FAIL"
	}
	fmt.Fprintf(&s, "%s  %s  %v  %s: %d passed, %d failed, %d skipped", verdict, r.kernel, r.took.Round(time.Second),
		strings.Join(r.began, ", "), r.good, len(r.bad), len(r.skipped))
	for _, name := range r.skipped {
		s.WriteString("\n      SKIP " + name)
	}
	for _, name := range r.bad {
		s.WriteString("\n      FAIL " + name)
	}
	if err := r.err(); err != nil {
		s.WriteString("\n      " + err.Error())
	}
	return s.String()
}
