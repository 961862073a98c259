package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// state is a column of the memory table.
type state struct {
	name  string
	conns int
	rate  int
}

func (s state) String() string {
	switch {
	case s.rate > 0:
		return fmt.Sprintf("%d requests/s", s.rate)
	case s.conns > 0:
		return fmt.Sprintf("%d %s", s.conns, s.name)
	}
	return "idle, " + s.name
}

// memoryTable shows RSS, and in parentheses what of it is anonymous, and what a connection costs.
func (r *Run) memoryTable() Table {
	t := Table{
		Title: "Memory, MB RSS (anonymous)",
		Note: "Idle connections of HTTP/2, HTTP/1.1, and HTTP/2 over mutual TLS; each has had one request. With mTLS it is the server's end of the two " +
			"hops; under load, the most that either end had. KB/connection is the growth of RSS from none to the most.",
		Head: []string{""},
	}
	var states []state
	for _, m := range r.Memory {
		if s := (state{m.State, m.Connections, m.Rate}); !slices.Contains(states, s) {
			states = append(states, s)
		}
	}
	slices.SortFunc(states, func(a, b state) int {
		return cmp.Or(cmp.Compare(a.rate, b.rate), cmp.Compare(a.name, b.name), cmp.Compare(a.conns, b.conns))
	})
	for _, s := range states {
		t.Head = append(t.Head, s.String())
	}
	t.Head = append(t.Head, "KB/connection h2c, http1, mtls")
	for _, p := range r.Peers {
		row, any := []string{p.Title}, false
		for _, s := range states {
			cell := ""
			if m := r.memory(p.Name, s.name, s.conns); m != nil {
				cell, any = fmt.Sprintf("%.1f (%.1f)", float64(m.RSS)/1024, float64(m.Anon)/1024), true
			}
			row = append(row, cell)
		}
		if any {
			t.Rows = append(t.Rows, append(row, r.costs(p.Name)))
		}
	}
	return t
}

// costs are the KB of an idle connection by protocol.
func (r *Run) costs(peer string) string {
	var out []string
	for _, kind := range []string{"h2c", "http1", "mtls"} {
		c := "–"
		if e := r.perConnection(peer, kind); e.N > 0 {
			c = fmt.Sprintf("%.1f", e.Median)
		}
		out = append(out, c)
	}
	return strings.Join(out, ", ")
}
