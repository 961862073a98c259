package report

import (
	"fmt"

	"conduit.io/conduit/tests/bench/plot"
)

// Plots are the pictures of r by file name; those of which nothing was measured are left out.
func (r *Run) Plots() map[string][]byte {
	out := map[string][]byte{}
	for name, f := range map[string]*plot.Figure{"cpu.svg": r.cpuPlot(), "latency.svg": r.latencyPlot(), "memory.svg": r.memoryPlot()} {
		if len(f.Panels) > 0 {
			out[name] = plot.SVG(f)
		}
	}
	return out
}

// panel is a plot that is still to be filled: what a peer has in it, with no text for nothing.
type panel struct {
	title, unit string
	cell        func(p *Peer) (marks []plot.Mark, text string)
}

// fill makes the panels of f. All have the same rows, so that a label is true for those beside it as well: one for each
// peer that is in any panel, first those of one hop, then those of two.
func (r *Run) fill(f *plot.Figure, panels []panel) *plot.Figure {
	for _, p := range panels {
		f.Panels = append(f.Panels, plot.Panel{Title: p.title, Unit: p.unit})
	}
	for _, meshes := range []bool{false, true} {
		gap := meshes
		for i := range r.Peers {
			if p := &r.Peers[i]; (p.Hops == 2) == meshes && r.addRow(f, panels, p, gap) {
				gap = false
			}
		}
	}
	if len(f.Panels) > 0 && len(f.Panels[0].Rows) == 0 {
		f.Panels = nil
	}
	return f
}

// addRow adds a peer's row to all panels, unless it would be empty in all.
func (r *Run) addRow(f *plot.Figure, panels []panel, p *Peer, gap bool) bool {
	rows, any := make([]plot.Row, len(panels)), false
	for i := range panels {
		marks, text := panels[i].cell(p)
		any = any || text != ""
		if text == "" {
			text = "–"
		}
		rows[i] = plot.Row{Label: p.Title, Marks: marks, Text: text, Gap: gap}
		switch {
		case p.Name == one || p.Name == two:
			rows[i].Style = plot.Ours
		case p.Control:
			rows[i].Style = plot.Control
		}
	}
	if any {
		for i := range rows {
			f.Panels[i].Rows = append(f.Panels[i].Rows, rows[i])
		}
	}
	return any
}

func (r *Run) cpuPlot() *plot.Figure {
	f := &plot.Figure{
		Title:    "Processor time of a request",
		Subtitle: "µs, all threads of all the proxies in the chain; one core, logarithmic axis; the bar is the 95 % interval",
		Columns:  3,
	}
	var panels []panel
	for _, w := range r.Workloads {
		if w.Kind != "cpu" {
			continue
		}
		panels = append(panels, panel{w.Title, "µs", func(p *Peer) ([]plot.Mark, string) {
			c := r.figure(w.Name, p.Name, "cpu_us")
			switch {
			case c == nil || p.Name == direct:
				return nil, ""
			case c.N == 0:
				return nil, "failed"
			}
			return []plot.Mark{{Value: c.Median, Low: c.Low, High: c.High}}, fmt.Sprintf("%.1f", c.Median)
		}})
	}
	return r.fill(f, panels)
}

func (r *Run) latencyPlot() *plot.Figure {
	f := &plot.Figure{
		Title:    "Latency at a fixed rate",
		Subtitle: "p50, p99 and p99.9 in µs from when a request was to start; the number is p99; logarithmic axis",
		Columns:  2,
	}
	var panels []panel
	for _, w := range r.Workloads {
		if w.Kind != "latency" {
			continue
		}
		panels = append(panels, panel{w.Title, "µs", func(p *Peer) ([]plot.Mark, string) {
			var marks []plot.Mark
			text := ""
			for _, q := range percentiles {
				c := r.figure(w.Name, p.Name, q.name)
				switch {
				case c == nil:
					return nil, ""
				case c.N == 0:
					return nil, "failed"
				}
				marks = append(marks, plot.Mark{Value: c.Median})
				if q.name == "p99_us" {
					text = fmt.Sprintf("%.0f", c.Median)
				}
			}
			return marks, text
		}})
	}
	return r.fill(f, panels)
}

func (r *Run) memoryPlot() *plot.Figure {
	f := &plot.Figure{
		Title:    "Memory",
		Subtitle: "of an idle connection (KB, of RSS), and of a proxy at 5,000 requests a second (MB RSS); logarithmic axis",
		Columns:  2,
	}
	var panels []panel
	add := func(title, unit string, value func(p *Peer) (float64, bool)) {
		panels = append(panels, panel{title, unit, func(p *Peer) ([]plot.Mark, string) {
			v, ok := value(p)
			if !ok || v <= 0 {
				return nil, ""
			}
			return []plot.Mark{{Value: v}}, fmt.Sprintf("%.1f", v)
		}})
	}
	for _, k := range []struct{ kind, title string }{
		{"h2c", "idle HTTP/2 connection"}, {"http1", "idle HTTP/1.1 connection"}, {"mtls", "idle HTTP/2 connection, mutual TLS"},
	} {
		add(k.title, "KB", func(p *Peer) (float64, bool) {
			e := r.perConnection(p.Name, k.kind)
			return e.Median, e.N > 0
		})
	}
	add("5,000 requests a second", "MB", func(p *Peer) (float64, bool) {
		m := r.memory(p.Name, "load", 0)
		if m == nil {
			return 0, false
		}
		return float64(m.RSS) / 1024, true
	})
	return r.fill(f, panels)
}
