// Package output is how the command line talks to people: aligned tables, colours where they are wanted, and
// failures that say what to do next.
package output

import (
	"errors"
	"fmt"
	"io"
)

// Problem is a failure in the words of the user: what happened, why that probably is, and the next command to run.
type Problem struct {
	What  string // lower-case, no full stop
	Cause string // may be empty
	Next  string // may be empty
	Err   error  // the technical error, may be nil
}

// Error is What and the technical error, on one line.
func (p *Problem) Error() string {
	if p.Err == nil {
		return p.What
	}
	return p.What + ": " + p.Err.Error()
}

// Unwrap returns the technical error.
func (p *Problem) Unwrap() error { return p.Err }

// Report writes err to w: a Problem with its cause and next step, anything else as one line.
func Report(w io.Writer, s Style, err error) {
	fmt.Fprintf(w, "%s %s\n", s.Bad("×"), err)
	var p *Problem
	if !errors.As(err, &p) {
		return
	}
	if p.Cause != "" {
		fmt.Fprintf(w, "  cause: %s\n", p.Cause)
	}
	if p.Next != "" {
		fmt.Fprintf(w, "  next:  %s\n", p.Next)
	}
}
