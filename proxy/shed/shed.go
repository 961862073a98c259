// Package shed keeps what some peers do not take from filling the memory that all share. Every stream and every connection
// has its own bound; this is the bound on all of them together.
package shed

import (
	"time"

	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"
)

const (
	// Limit is how many bytes a shard holds for peers that do not take them, before connections are shed until a
	// quarter of it is free.
	Limit = 48 << 20
	// pace is how often, above half of Limit, it is looked at who takes something; who takes less than minPace bytes a
	// second takes nothing.
	pace    = 5 * time.Second
	minPace = 256
)

// Guard watches over one shard. Everything runs on its loop.
type Guard struct {
	clock flow.Clock
	pool  *exchange.Pool
	each  Each
	seen  map[exchange.Burden]mark
}

// Each calls visit for every connection of a client: owner is who is answerable for it, such as a pod or an address.
type Each func(visit func(owner any, b exchange.Burden))

type mark struct {
	taken   uint64
	stalled bool
}

// load is a connection that may be shed.
type load struct {
	b       exchange.Burden
	owner   any
	held    int
	stalled bool
}

// Watch begins to watch over the connections that use pool.
func Watch(clock flow.Clock, pool *exchange.Pool, each Each) {
	g := &Guard{clock: clock, pool: pool, each: each}
	g.rest()
}

// rest waits until it is worth looking at who takes what.
func (g *Guard) rest() {
	g.seen = nil
	g.pool.Watch(Limit/2, func() { g.clock.After(0, g.look) })
}

// look notes who takes something.
func (g *Guard) look() {
	if g.pool.Held() <= Limit/4 {
		g.rest()
		return
	}
	old := g.seen
	g.seen = make(map[exchange.Burden]mark)
	g.each(func(_ any, b exchange.Burden) {
		if b.Held() == 0 {
			return
		}
		m := mark{taken: b.Taken()}
		if before, ok := old[b]; ok {
			m.stalled = m.taken-before.taken < minPace*uint64(pace/time.Second)
		}
		g.seen[b] = m
	})
	g.clock.After(pace, g.look)
	if g.pool.Held() > Limit {
		g.shed()
		return
	}
	g.arm()
}

func (g *Guard) arm() { g.pool.Watch(Limit, func() { g.clock.After(0, g.shed) }) }

// shed makes room: those go first that have not taken anything for a while, of these those of the owner with the most, and
// of his that which holds most.
func (g *Guard) shed() {
	all, owned := g.loads()
	for g.pool.Held() > Limit/4*3 {
		worst := -1
		for i := range all {
			if worst < 0 || worse(&all[i], &all[worst], owned) {
				worst = i
			}
		}
		if worst < 0 || all[worst].held == 0 {
			break
		}
		l := &all[worst]
		owned[l.owner] -= l.held
		l.held = 0
		l.b.Shed()
	}
	g.arm()
}

func worse(a, b *load, owned map[any]int) bool {
	switch {
	case (a.held > 0) != (b.held > 0):
		return a.held > 0
	case a.stalled != b.stalled:
		return a.stalled
	case owned[a.owner] != owned[b.owner]:
		return owned[a.owner] > owned[b.owner]
	}
	return a.held > b.held
}

func (g *Guard) loads() (all []load, owned map[any]int) {
	owned = map[any]int{}
	g.each(func(owner any, b exchange.Burden) {
		if n := b.Held(); n > 0 {
			all = append(all, load{b, owner, n, g.seen[b].stalled})
			owned[owner] += n
		}
	})
	return all, owned
}
