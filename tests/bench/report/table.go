package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Table is figures for people.
type Table struct {
	Title string
	Note  string
	Head  []string
	Rows  [][]string
}

// Text writes t in columns.
func (t *Table) Text(w io.Writer) error {
	fmt.Fprintln(w, t.Title)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{t.Head}, t.Rows...) {
		fmt.Fprintln(tw, "  "+strings.Join(row, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

// Markdown writes t for a page.
func (t *Table) Markdown(w io.Writer) {
	fmt.Fprintf(w, "### %s\n\n", t.Title)
	if t.Note != "" {
		fmt.Fprintf(w, "%s\n\n", t.Note)
	}
	rule := make([]string, len(t.Head))
	for i := range rule {
		rule[i] = "---"
		if i > 0 {
			rule[i] = "--:"
		}
	}
	for _, row := range append([][]string{t.Head, rule}, t.Rows...) {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
	fmt.Fprintln(w)
}

// Tables are all that there is to show, the goals first.
func (r *Run) Tables() []Table {
	var out []Table
	for _, t := range []Table{r.goalTable(), r.cpuTable(), r.addedTable(), r.latencyTable(), r.bulkTable(), r.memoryTable(), r.leftOut()} {
		if len(t.Rows) > 0 {
			out = append(out, t)
		}
	}
	return out
}

func (r *Run) goalTable() Table {
	t := Table{Title: "Goals", Head: []string{"", "goal", "measured (95 % interval)", "", "ceiling"}}
	for _, g := range r.Goals {
		t.Rows = append(t.Rows, []string{g.Subject, g.Goal, g.Measured, g.Verdict, g.Most})
	}
	return t
}

// byWorkload makes a table of one kind of workload: a row for each peer that has a cell.
func (r *Run) byWorkload(t Table, kind string, cell func(w *Workload, p *Peer) string) Table {
	t.Head = []string{""}
	for i := range r.Workloads {
		if r.Workloads[i].Kind == kind {
			t.Head = append(t.Head, r.Workloads[i].Name)
		}
	}
	for i := range r.Peers {
		p := &r.Peers[i]
		row, any := []string{p.Title}, false
		for j := range r.Workloads {
			if r.Workloads[j].Kind != kind {
				continue
			}
			c := cell(&r.Workloads[j], p)
			any = any || c != ""
			row = append(row, c)
		}
		if any {
			t.Rows = append(t.Rows, row)
		}
	}
	return t
}

func (r *Run) cpuTable() Table {
	t := Table{
		Title: "CPU of a request, µs (and how many times Conduit's with as many hops)",
		Note: "Processor time of all threads of all the peer's processes, divided by the requests completed; median over the rounds. " +
			"With two hops it is the sum of both proxies. The ratio is the median of the ratios within each round.",
	}
	return r.byWorkload(t, "cpu", func(w *Workload, p *Peer) string {
		f := r.figure(w.Name, p.Name, "cpu_us")
		if f == nil || p.Name == direct {
			return ""
		}
		return withRatio(f, "%.1f")
	})
}

func withRatio(f *Figure, format string) string {
	switch {
	case f.N == 0:
		return "failed"
	case f.Ratio == nil:
		return fmt.Sprintf(format, f.Median)
	}
	return fmt.Sprintf(format+" (%.2f×)", f.Median, f.Ratio.Median)
}

func (r *Run) addedTable() Table {
	t := Table{
		Title: "Latency added over direct, p50 / p99 / p99.9, µs",
		Note: "Open loop: requests start evenly spaced, and are timed from when they were to start. The median over the rounds of the difference " +
			"to the requests without a proxy in the same round. Rounds in which even those had a p99 of more than 1.5 times their median are void.",
	}
	return r.byWorkload(t, "latency", func(w *Workload, p *Peer) string {
		if p.Name == direct {
			return ""
		}
		return r.triple(w, p, "added_", "%+.0f")
	})
}

func (r *Run) latencyTable() Table {
	t := Table{Title: "Latency, p50 / p99 / p99.9, µs"}
	return r.byWorkload(t, "latency", func(w *Workload, p *Peer) string { return r.triple(w, p, "", "%.0f") })
}

func (r *Run) triple(w *Workload, p *Peer, prefix, format string) string {
	var out []string
	for _, q := range percentiles {
		f := r.figure(w.Name, p.Name, prefix+q.name)
		if f == nil {
			return ""
		}
		if f.N == 0 {
			return "failed"
		}
		out = append(out, fmt.Sprintf(format, f.Median))
	}
	return strings.Join(out, " / ")
}

func (r *Run) bulkTable() Table {
	t := Table{
		Title: "Opaque TCP, one connection, MB/s, and µs of CPU for a MB",
		Note: "The proxies have one core, both ends another. The two crypto/tls ends are no proxies: client and server speak TLS themselves, both on " +
			"the proxies' core; the relay is crypto/tls and a copy loop at the place of the two proxies.",
	}
	return r.byWorkload(t, "bulk", func(w *Workload, p *Peer) string {
		f, cpu := r.figure(w.Name, p.Name, "mb_s"), r.figure(w.Name, p.Name, "cpu_us_mb")
		switch {
		case f == nil:
			return ""
		case f.N == 0:
			return "failed"
		case p.Hops == 0 || p.Name == "tls-ends":
			return fmt.Sprintf("%.0f", f.Median)
		}
		return fmt.Sprintf("%.0f, %.0f µs", f.Median, cpu.Median)
	})
}

func (r *Run) leftOut() Table {
	t := Table{Title: "Left out", Head: []string{"", "why"}}
	for _, p := range r.Peers {
		if p.Skipped != "" {
			t.Rows = append(t.Rows, []string{p.Title, oneLine(p.Skipped)})
		}
	}
	for _, w := range r.Workloads {
		if n := r.voidRounds(w); n > 0 {
			t.Rows = append(t.Rows, []string{w.Name + ", all", fmt.Sprintf("%d of %d rounds void: noisy", n, r.Settings.Rounds)})
		}
		for _, p := range r.Peers {
			if n, why := r.failures(w.Name, p.Name); n > 0 {
				t.Rows = append(t.Rows, []string{w.Name + ", " + p.Title, fmt.Sprintf("%d of %d samples: %s", n, r.Settings.Rounds, oneLine(why))})
			}
		}
	}
	for i := range r.Memory {
		if m := &r.Memory[i]; m.Error != "" {
			t.Rows = append(t.Rows, []string{fmt.Sprintf("memory of %s, %v", m.Peer, state{m.State, m.Connections, m.Rate}), oneLine(m.Error)})
		}
	}
	return t
}

// voidRounds is how many rounds of a latency workload were noisy.
func (r *Run) voidRounds(w Workload) int {
	n := 0
	if w.Kind == "latency" {
		for _, void := range r.noisy(w.Name) {
			if void {
				n++
			}
		}
	}
	return n
}

// failures are how many samples do not count, and why the first one does not.
func (r *Run) failures(workload, peer string) (n int, why string) {
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Workload == workload && s.Peer == peer && s.Error != "" {
			if n++; n == 1 {
				why = s.Error
			}
		}
	}
	return n, why
}

// oneLine makes a reason fit a table.
func oneLine(s string) string {
	s = strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", "/")
	const most = 160
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return s
}
