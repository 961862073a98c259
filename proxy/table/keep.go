package table

import (
	"maps"
	"net/netip"
)

// OnDemand reports whether the snapshot has what it was asked for, and not everything that there is.
func (t *Table) OnDemand() bool { return t.onDemand }

// Keep has t go on saying what old says of those among asked, addresses (port 0) and ports of shared ones, of which the snapshot of t says
// nothing yet: an agent that has just begun knows what it has been told so far. It is to be called before t is in force.
func (t *Table) Keep(old *Table, asked []netip.AddrPort) {
	if !t.onDemand || !old.onDemand {
		return
	}
	kept := false
	for _, q := range asked {
		if q = unmap(q); !t.Covers(q) && old.Covers(q) {
			t.keep(old, q)
			kept = true
		}
	}
	if !kept {
		return
	}
	said := maps.Clone(old.declared)
	maps.Copy(said, t.declared)
	t.declared = said
}

func (t *Table) keep(old *Table, q netip.AddrPort) {
	a := q.Addr()
	if p := old.ports[q]; p != nil {
		t.ports[q] = p
	}
	if w := old.byAddr[a]; w != nil {
		t.byAddr[a] = w
	}
	if svc := old.services[a]; svc != nil {
		t.services[a] = svc
	}
	if _, ok := old.nobody[q]; ok {
		t.nobody[q] = struct{}{}
	}
	if old.ByPort(a) {
		t.byPort[a] = struct{}{}
	}
}
