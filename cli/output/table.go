package output

import (
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// Table is text in aligned columns, two spaces apart, without trailing blanks.
type Table struct {
	Style Style
	Head  []string
	Right []bool // which columns are numbers, aligned right
	rows  [][]cell
	tight bool // one space apart
}

type cell struct {
	text  string
	paint func(string) string
}

// Row appends a row of plain cells.
func (t *Table) Row(cells ...string) {
	row := make([]cell, len(cells))
	for i, c := range cells {
		row[i].text = c
	}
	t.rows = append(t.rows, row)
}

// Paint colours column col of the last row.
func (t *Table) Paint(col int, paint func(string) string) {
	t.rows[len(t.rows)-1][col].paint = paint
}

// Fit moves the columns together if the table is wider than width, and as long as it is leaves out those with the heads
// given, in this order.
func (t *Table) Fit(width int, expendable ...string) {
	t.tight = t.width() > width
	for _, head := range expendable {
		i := slices.Index(t.Head, head)
		if i < 0 || t.width() <= width {
			continue
		}
		t.Head = slices.Delete(t.Head, i, i+1)
		if i < len(t.Right) {
			t.Right = slices.Delete(t.Right, i, i+1)
		}
		for r := range t.rows {
			t.rows[r] = slices.Delete(t.rows[r], i, i+1)
		}
	}
}

func (t *Table) gap() int {
	if t.tight {
		return 1
	}
	return 2
}

// width is that of a full line.
func (t *Table) width() int {
	n := -t.gap()
	for _, w := range t.widths() {
		n += t.gap() + w
	}
	return n
}

// widths are those of the columns.
func (t *Table) widths() []int {
	width := make([]int, len(t.Head))
	for i, h := range t.Head {
		width[i] = utf8.RuneCountInString(h)
	}
	for _, row := range t.rows {
		for i, c := range row {
			width[i] = max(width[i], utf8.RuneCountInString(c.text))
		}
	}
	return width
}

// Write writes the table.
func (t *Table) Write(w io.Writer) error {
	width := t.widths()
	var b strings.Builder
	head := make([]cell, len(t.Head))
	for i, h := range t.Head {
		head[i] = cell{text: h, paint: t.Style.Bold}
	}
	for _, row := range append([][]cell{head}, t.rows...) {
		t.line(&b, row, width)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t *Table) line(b *strings.Builder, row []cell, width []int) {
	for i, c := range row {
		text, pad := c.text, strings.Repeat(" ", width[i]-utf8.RuneCountInString(c.text))
		if c.paint != nil {
			text = c.paint(text)
		}
		if i > 0 {
			b.WriteString(strings.Repeat(" ", t.gap()))
		}
		switch {
		case i < len(t.Right) && t.Right[i]:
			b.WriteString(pad + text)
		case i == len(row)-1:
			b.WriteString(text)
		default:
			b.WriteString(text + pad)
		}
	}
	b.WriteByte('\n')
}
