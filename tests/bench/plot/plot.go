// Package plot draws dot plots as SVG: panels of rows on a logarithmic axis, each row a label and what was measured with
// its interval. The same input gives the same bytes.
package plot

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
)

// Figure is a picture.
type Figure struct {
	Title    string
	Subtitle string
	Columns  int // panels side by side
	Panels   []Panel
}

// Panel is one plot.
type Panel struct {
	Title string
	Unit  string // below the axis
	Rows  []Row
}

// Row is one line of a panel. Without marks there is only the label.
type Row struct {
	Label string
	Marks []Mark
	Text  string // at the right end
	Style Style
	Gap   bool // some space above: another group begins
}

// Mark is a value, in an interval when Low is less than High. Values are positive.
type Mark struct{ Value, Low, High float64 }

// Style says what a row is.
type Style int

// The styles.
const (
	Other   Style = iota
	Ours          // stands out
	Control       // stands back
)

// Measures in pixels.
const (
	margin    = 20
	labelW    = 212
	plotW     = 250
	textW     = 62
	panelGap  = 24
	rowH      = 19
	gapH      = 9
	titleH    = 26
	axisH     = 34
	headH     = 58
	fontSize  = 12
	radius    = 4.2
	smallFont = 11
)

const (
	ink     = "#1f2328"
	faint   = "#59636e"
	grid    = "#e4e8ec"
	accent  = "#0757c4"
	neutral = "#7a8590"
	band    = "#f1f6fd"
)

type writer struct{ bytes.Buffer }

// SVG draws f.
func SVG(f *Figure) []byte {
	w := &writer{}
	columns := max(1, f.Columns)
	width := 2*margin + labelW + columns*(plotW+textW) + (columns-1)*panelGap
	rows := (len(f.Panels) + columns - 1) / columns
	y := float64(headH)
	var tops []float64
	for r := range rows {
		tops = append(tops, y)
		tallest := 0.0
		for _, p := range f.Panels[r*columns : min(len(f.Panels), (r+1)*columns)] {
			tallest = max(tallest, p.height())
		}
		y += tallest
	}
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%.0f" viewBox="0 0 %d %.0f" font-family="system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="%d">`+"\n",
		width, y+margin, width, y+margin, fontSize)
	fmt.Fprintf(w, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	w.text(margin, 28, "start", ink, `font-size="17" font-weight="600"`, f.Title)
	w.text(margin, 46, "start", faint, "", f.Subtitle)
	for i := range f.Panels {
		column := i % columns
		x := float64(margin + labelW + column*(plotW+textW+panelGap))
		w.panel(&f.Panels[i], x, tops[i/columns], column == 0)
	}
	w.WriteString("</svg>\n")
	return w.Bytes()
}

func (p *Panel) height() float64 {
	h := float64(titleH + axisH + len(p.Rows)*rowH)
	for _, r := range p.Rows {
		if r.Gap {
			h += gapH
		}
	}
	return h
}

func (w *writer) text(x, y float64, anchor, fill, more, s string) {
	if more != "" {
		more = " " + more
	}
	fmt.Fprintf(w, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s"%s>`, x, y, anchor, fill, more)
	_ = xml.EscapeText(w, []byte(s)) // a buffer takes everything
	w.WriteString("</text>\n")
}

// panel draws p with its axis from x on; labels are left of it.
func (w *writer) panel(p *Panel, x, y float64, labels bool) {
	w.text(x, y+14, "start", ink, `font-weight="600"`, p.Title)
	top, bottom := y+titleH, y+p.height()-axisH
	s := scaleOf(p)
	for _, tick := range s.ticks() {
		tx := x + s.at(tick)*plotW
		fmt.Fprintf(w, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", tx, top-2, tx, bottom, grid)
		w.text(tx, bottom+14, "middle", faint, fmt.Sprintf(`font-size="%d"`, smallFont), number(tick))
	}
	w.text(x+plotW+textW, bottom+14, "end", faint, fmt.Sprintf(`font-size="%d"`, smallFont), p.Unit)
	ry := top
	for i := range p.Rows {
		if p.Rows[i].Gap {
			ry += gapH
		}
		w.row(&p.Rows[i], s, x, ry, labels)
		ry += rowH
	}
}

func (w *writer) row(r *Row, s scale, x, y float64, labels bool) {
	color, weight := neutral, ""
	text := ink
	switch r.Style {
	case Ours:
		color, text, weight = accent, accent, `font-weight="600"`
		left := x - 4
		if labels {
			left = x - labelW
		}
		fmt.Fprintf(w, `<rect x="%.1f" y="%.1f" width="%.1f" height="%d" fill="%s"/>`+"\n", left, y, x+plotW+textW-left, rowH, band)
	case Control:
		text = faint
	}
	mid := y + rowH/2.0
	if labels {
		w.text(x-12, mid+4, "end", text, weight, r.Label)
	}
	if len(r.Marks) > 1 {
		fmt.Fprintf(w, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="2" stroke-opacity="0.45"/>`+"\n",
			x+s.at(r.Marks[0].Value)*plotW, mid, x+s.at(r.Marks[len(r.Marks)-1].Value)*plotW, mid, color)
	}
	for i, m := range r.Marks {
		if m.Low < m.High && len(r.Marks) == 1 {
			fmt.Fprintf(w, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="2.4" stroke-opacity="0.5"/>`+"\n",
				x+s.at(m.Low)*plotW, mid, x+s.at(m.High)*plotW, mid, color)
		}
		fill := color
		if r.Style == Control || i > 0 && i < len(r.Marks)-1 {
			fill = "#ffffff"
		}
		fmt.Fprintf(w, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s" stroke="%s" stroke-width="1.6"/>`+"\n", x+s.at(m.Value)*plotW, mid, radius, fill, color)
	}
	w.text(x+plotW+textW, mid+4, "end", text, weight, r.Text)
}

// scale is a logarithmic axis from low to high.
type scale struct{ low, high float64 }

// scaleOf spans the marks of p, in steps of 1, 2, 5.
func scaleOf(p *Panel) scale {
	low, high := math.Inf(1), math.Inf(-1)
	for _, r := range p.Rows {
		for _, m := range r.Marks {
			low, high = min(low, m.Value), max(high, m.Value)
			if m.Low < m.High && len(r.Marks) == 1 {
				low, high = min(low, m.Low), max(high, m.High)
			}
		}
	}
	if !(low > 0) || math.IsInf(high, 0) {
		return scale{1, 10}
	}
	s := scale{step(low, false), step(high, true)}
	if s.low == s.high {
		s.high *= 10
	}
	return s
}

// step is the nearest of 1, 2, 5 times a power of ten that is not above v, or with up not below it.
func step(v float64, up bool) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	best := power
	for _, k := range []float64{1, 2, 5, 10} {
		at := k * power
		if up && at >= v*(1-1e-9) {
			return at
		}
		if !up && at <= v*(1+1e-9) {
			best = at
		}
	}
	return best
}

// at is where v lies, from 0 to 1.
func (s scale) at(v float64) float64 {
	f := math.Log(v/s.low) / math.Log(s.high/s.low)
	return min(1, max(0, f))
}

// ticks are the powers of ten, and their double and fivefold when there are few.
func (s scale) ticks() []float64 {
	factors := []float64{1, 2, 5}
	if s.high/s.low > 300 {
		factors = []float64{1}
	}
	var out []float64
	for power := math.Pow(10, math.Floor(math.Log10(s.low))); power <= s.high; power *= 10 {
		for _, k := range factors {
			if v := k * power; v >= s.low*(1-1e-9) && v <= s.high*(1+1e-9) {
				out = append(out, v)
			}
		}
	}
	return out
}

// number is v without needless digits.
func number(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%gk", v/1e3)
	}
	return fmt.Sprintf("%g", v)
}
