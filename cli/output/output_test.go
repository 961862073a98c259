package output

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	p := &Problem{What: "no lamp", Cause: "it is dark", Next: "light --on", Err: fs.ErrNotExist}
	var b strings.Builder
	Report(&b, Style{}, fmt.Errorf("upstairs: %w", p))
	if want := "× upstairs: no lamp: file does not exist\n  cause: it is dark\n  next:  light --on\n"; b.String() != want {
		t.Errorf("want %q, got %q", want, b.String())
	}
	if !errors.Is(p, fs.ErrNotExist) {
		t.Error("the technical error is lost")
	}
	b.Reset()
	Report(&b, Style{}, errors.New("plain"))
	if b.String() != "× plain\n" {
		t.Errorf("got %q", b.String())
	}
}

// TestTable: colours do not move columns, and without them there are no escapes.
func TestTable(t *testing.T) {
	for _, style := range []Style{{}, {colour: true}} {
		table := Table{Style: style, Head: []string{"NAME", "N", "LAST"}, Right: []bool{false, true, false}}
		table.Row("größe", "1", "x")
		table.Paint(2, style.Good)
		table.Row("b", "200", "longer")
		var b strings.Builder
		if err := table.Write(&b); err != nil {
			t.Fatal(err)
		}
		got := b.String()
		if strings.Contains(got, "\x1b") != style.colour {
			t.Errorf("escapes: %q", got)
		}
		for _, code := range []string{"\x1b[1m", "\x1b[32m", "\x1b[0m"} {
			got = strings.ReplaceAll(got, code, "")
		}
		if want := "NAME     N  LAST\ngröße    1  x\nb      200  longer\n"; got != want {
			t.Errorf("want %q, got %q", want, got)
		}
	}
}

// TestFit: columns move together, then go in the order given, and only as many as must.
func TestFit(t *testing.T) {
	for width, want := range map[int]string{
		18: "NAME  A   B  LAST\nx     1  22  yy\n",
		17: "NAME  A   B  LAST\nx     1  22  yy\n",
		16: "NAME A  B LAST\nx    1 22 yy\n",
		14: "NAME A  B LAST\nx    1 22 yy\n",
		13: "NAME A LAST\nx    1 yy\n",
		9:  "NAME LAST\nx    yy\n",
		3:  "NAME LAST\nx    yy\n",
	} {
		table := Table{Head: []string{"NAME", "A", "B", "LAST"}, Right: []bool{false, true, true, false}}
		table.Row("x", "1", "22", "yy")
		table.Fit(width, "B", "NONE", "A")
		var b strings.Builder
		if err := table.Write(&b); err != nil || b.String() != want {
			t.Errorf("width %d: want %q, got %q", width, want, b.String())
		}
	}
}

func TestStyleFor(t *testing.T) {
	none := func(string) string { return "" }
	if StyleFor(&strings.Builder{}, none).colour {
		t.Error("colour into a buffer")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if StyleFor(w, none).colour || IsTerminal(w) {
		t.Error("colour into a pipe")
	}
}
