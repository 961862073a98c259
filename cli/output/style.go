package output

import (
	"io"
	"os"

	"golang.org/x/term"
)

// Style colours text for a terminal. The zero Style leaves text alone.
type Style struct {
	colour bool
}

// StyleFor is the style for writing to w: colours on a terminal, unless NO_COLOR (no-color.org) is set or TERM is dumb.
func StyleFor(w io.Writer, getenv func(string) string) Style {
	return Style{colour: IsTerminal(w) && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"}
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Good is text about something that is as it should be.
func (s Style) Good(t string) string { return s.paint("32", t) }

// Warn is text about something to look at.
func (s Style) Warn(t string) string { return s.paint("33", t) }

// Bad is text about a failure.
func (s Style) Bad(t string) string { return s.paint("31", t) }

// Bold is a heading.
func (s Style) Bold(t string) string { return s.paint("1", t) }

// Dim is text of lesser weight.
func (s Style) Dim(t string) string { return s.paint("2", t) }

func (s Style) paint(code, t string) string {
	if !s.colour || t == "" {
		return t
	}
	return "\x1b[" + code + "m" + t + "\x1b[0m"
}
