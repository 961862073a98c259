package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
)

// minNodes is the least number of nodes with which some agents dial nothing of what changes.
const minNodes = 8

// faults are what must not happen at any size.
func (p *point) faults() (err error) {
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			err = errors.Join(err, fmt.Errorf("%d nodes: "+format, append([]any{p.Nodes}, args...)...))
		}
	}
	fault(p.Change.Lost+p.Herd.Lost > 0, "%d changes were not heard of, and %d while the controller was started anew", p.Change.Lost, p.Herd.Lost)
	fault(p.Change.Heard < 2*p.Change.Changes, "%d changes were heard of %d times only", p.Change.Changes, p.Change.Heard)
	fault(p.Change.IdleAgents == 0 || p.Change.IdleBytes > 0, "%d agents that dial nothing of what changed were sent %d bytes", p.Change.IdleAgents, p.Change.IdleBytes)
	fault(p.Enrol.Conditions != p.Pods || p.Enrol.Writes != p.Pods+p.Nodes, "%d of %d pods have their condition, and with those of the agents there were %d writes", p.Enrol.Conditions, p.Pods, p.Enrol.Writes)
	fault(p.Enrol.Untainted != p.Nodes, "%d taints were taken off", p.Enrol.Untainted)
	fault(p.Herd.Writes > 0, "%d conditions were written again when the controller was started anew", p.Herd.Writes)
	fault(p.RestBytes > 0, "discovery sends each agent %.0f bytes a second when nothing happens", p.RestBytes)
	return err
}

// row is a line of the table: what it says of each point.
type row struct {
	name  string
	value func(p *point) string
}

func mb(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/(1<<20)) }

func (m memory) String() string { return fmt.Sprintf("%s, %s, %s", mb(m.RSS), mb(m.Anon), mb(m.Heap)) }
func (t taken) String() string {
	return fmt.Sprintf("%s, %s, %s s", digits(t.Controller), digits(t.API), digits(t.Agents))
}
func (s spread) String() string {
	return fmt.Sprintf("%s, %s, %s ms", digits(s.P50), digits(s.P99), digits(s.Max))
}

// digits is v with as many digits as mean something.
func digits(v float64) string {
	if v < 10 && v > -10 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func text(format string, f func(p *point) []any) func(p *point) string {
	return func(p *point) string { return fmt.Sprintf(format, f(p)...) }
}

var rows = []row{
	{"**The controller with the cluster, without agents**", nil},
	{"from its start until it is ready", text("%.1f s", func(p *point) []any { return []any{p.Load.Ready} })},
	{"CPU time for that", text("%.1f s", func(p *point) []any { return []any{p.Load.CPU} })},
	{"memory at most", func(p *point) string { return mb(p.Load.Peak) }},
	{"memory at rest: RSS, anonymous, heap", func(p *point) string { return p.Alone.String() }},
	{"**Agents come**", nil},
	{"one, alone: from its connect to its complete snapshot", text("%.0f ms", func(p *point) []any { return []any{p.First} })},
	{"bytes of that snapshot", text("%d", func(p *point) []any { return []any{p.Together.Bytes} })},
	{"all others at once: the same, p50, p99, most", func(p *point) string { return p.Together.Snapshot.String() }},
	{"CPU time until the last has it: controller, API server, agents", func(p *point) string { return p.Together.CPU.String() }},
	{"memory at most", func(p *point) string { return mb(p.Together.Peak) }},
	{"what an agent's Directory holds: Services, endpoints, workloads", text("%d, %d, %d", func(p *point) []any { return []any{p.Held.Services, p.Held.Endpoints, p.Held.Workloads} })},
	{"memory of that", text("%d KB", func(p *point) []any { return []any{p.Held.Bytes >> 10} })},
	{"**Agents report, every 10 s; pods are enrolled for the first time**", nil},
	{"conditions written, until the last", text("%d in %.0f s", func(p *point) []any { return []any{p.Enrol.Writes, p.Enrol.Seconds} })},
	{"CPU time meanwhile: controller, API server, agents", func(p *point) string { return p.Enrol.CPU.String() }},
	{"**At rest, with all agents**", nil},
	{"memory: RSS, anonymous, heap", func(p *point) string { return p.Rest.String() }},
	{"CPU", text("%.1f %% of a core", func(p *point) []any { return []any{p.RestCPU} })},
	{"bytes that discovery sends", text("%.0f", func(p *point) []any { return []any{p.RestBytes} })},
	{"**Endpoints change, at the same rate**", nil},
	{"changes in a second", text("%.0f", func(p *point) []any { return []any{p.Rate} })},
	{"a plain watch of the API server hears: p50, p99, most", func(p *point) string { return p.Change.Watch.String() }},
	{"agents hear: p50, p99, most", func(p *point) string { return p.Change.Agents.String() }},
	{"agents after the watch: p50, p99, most", func(p *point) string { return p.Change.Above.String() }},
	{"agents that hear of a change", text("%.1f", func(p *point) []any { return []any{float64(p.Change.Heard) / float64(max(1, p.Change.Changes))} })},
	{"bytes to each of them", text("%.0f", func(p *point) []any { return []any{p.Change.Bytes} })},
	{"bytes to all others", text("%d", func(p *point) []any { return []any{p.Change.IdleBytes} })},
	{"CPU time for a change: controller, API server, agents", func(p *point) string {
		c := p.Change.CPU
		return fmt.Sprintf("%.2f, %.1f, %.1f ms", 1000*c.Controller, 1000*c.API, 1000*c.Agents)
	}},
	{"processes that ran or waited to run, when it began", text("%.1f", func(p *point) []any { return []any{p.Crowd} })},
	{"**The controller is started anew, and all agents come back**", nil},
	{"from its start until it is ready", text("%.1f s", func(p *point) []any { return []any{p.Herd.Ready} })},
	{"from then until an agent has its complete snapshot: p50, p99, most", func(p *point) string { return p.Herd.Served.String() }},
	{"CPU time until the last has it: controller, API server, agents", func(p *point) string { return p.Herd.CPU.String() }},
	{"memory at most", func(p *point) string { return mb(p.Herd.Peak) }},
	{"agents that are back hear of changes meanwhile: p50, p99, most", func(p *point) string { return p.Herd.Change.String() }},
	{"conditions written again", text("%d", func(p *point) []any { return []any{p.Herd.Writes} })},
	{"**A MeshPolicy changes every pod**", nil},
	{"agents hear: p50, p99, most", func(p *point) string { return p.Policy.Heard.String() }},
	{"bytes to each", text("%.0f", func(p *point) []any { return []any{p.Policy.Bytes} })},
	{"CPU time of the controller", text("%.1f s", func(p *point) []any { return []any{p.Policy.CPU} })},
}

// table is Markdown.
func table(points []*point) string {
	var b strings.Builder
	line := func(name string, cell func(p *point) string) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, p := range points {
			fmt.Fprintf(&b, " %s |", cell(p))
		}
		b.WriteString("\n")
	}
	line("", func(p *point) string { return fmt.Sprintf("%d nodes", p.Nodes) })
	line("---", func(*point) string { return "---" })
	line("pods, Services", text("%d, %d", func(p *point) []any { return []any{p.Pods, p.Services} }))
	for _, r := range rows {
		if r.value == nil {
			line(r.name, func(*point) string { return "" })
			continue
		}
		line(r.name, r.value)
	}
	return b.String()
}

// The table of a page is between these.
const tableBegin, tableEnd = "<!-- table: made by make scale -->\n", "<!-- end of the table -->\n"

// rewrite puts a table in the place of the page's.
func rewrite(path, table string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, begins := bytes.Cut(page, []byte(tableBegin))
	_, after, ends := bytes.Cut(rest, []byte(tableEnd))
	if !begins || !ends {
		return fmt.Errorf("%s has no place for the table, between %q and %q", path, tableBegin, tableEnd)
	}
	return os.WriteFile(path, []byte(string(before)+tableBegin+table+tableEnd+string(after)), 0o644)
}
