package discovery

import (
	"cmp"
	"slices"
	"strings"

	"conduit.io/conduit/api/kube"
)

// Misspelt is a Pod or a Namespace (Name.Namespace empty) with labels or annotations that do not mean what was meant.
type Misspelt struct {
	Name  Name
	UID   string
	Owner string // of a pod, kind/name; empty: nobody
	Slips []kube.Slip
}

func (p *pod) misspelt() (m Misspelt) {
	if p.slips != nil && !p.ended {
		m = Misspelt{p.name, p.uid, p.owner, *p.slips}
	}
	return m
}

func (n *namespace) misspelt() (m Misspelt) {
	if n.slips != nil {
		m = Misspelt{n.name, n.uid, "", *n.slips}
	}
	return m
}

type speller interface{ misspelt() Misspelt }

// respell keeps account of what is misspelt when now takes the place of old, which may be nil.
func (x *Index) respell(old, now Record) {
	s, ok := now.(speller)
	if !ok {
		return
	}
	delete(x.misspelt, old)
	if len(s.misspelt().Slips) == 0 {
		return
	}
	x.misspelt[now] = struct{}{}
	select {
	case x.slipped <- struct{}{}:
	default:
	}
}

// Slipped is told when something is misspelt anew. It is for one reader.
func (x *Index) Slipped() <-chan struct{} { return x.slipped }

// Misspelt is what is misspelt now, in the order of names.
func (x *Index) Misspelt() []Misspelt {
	x.mu.Lock()
	out := make([]Misspelt, 0, len(x.misspelt))
	for r := range x.misspelt {
		out = append(out, r.(speller).misspelt())
	}
	x.mu.Unlock()
	slices.SortFunc(out, func(a, b Misspelt) int {
		return cmp.Or(strings.Compare(a.Name.Namespace, b.Name.Namespace), strings.Compare(a.Name.Name, b.Name.Name))
	})
	return out
}
