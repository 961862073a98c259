package shed

import (
	"slices"
	"testing"
	"time"

	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow/flowtest"
)

// client holds bytes of the pool.
type client struct {
	name  string
	owner string
	pool  *exchange.Pool
	held  int
	taken uint64
	shed  bool
}

func (c *client) Held() int     { return c.held }
func (c *client) Taken() uint64 { return c.taken }
func (c *client) Shed()         { c.shed = true; c.hold(-c.held) }
func (c *client) hold(n int)    { c.held += n; c.pool.Keep(n) }

// rig is a shard with clients.
type rig struct {
	n    *flowtest.Net
	pool *exchange.Pool
	all  []*client
}

func start() *rig {
	r := &rig{n: flowtest.New(), pool: exchange.NewPool()}
	Watch(r.n, r.pool, func(visit func(any, exchange.Burden)) {
		for _, c := range r.all {
			if !c.shed {
				visit(c.owner, c)
			}
		}
	})
	return r
}

func (r *rig) add(name, owner string, mib int) *client {
	c := &client{name: name, owner: owner, pool: r.pool}
	r.all = append(r.all, c)
	c.hold(mib << 20)
	return c
}

func (r *rig) gone() (names []string) {
	for _, c := range r.all {
		if c.shed {
			names = append(names, c.name)
		}
	}
	return names
}

func (r *rig) want(t *testing.T, names ...string) {
	t.Helper()
	r.n.Run()
	if got := r.gone(); !slices.Equal(got, names) {
		t.Errorf("shed were %v, want %v; %d MiB are held", got, names, r.pool.Held()>>20)
	}
}

func TestNobodyIsShedWithinTheLimit(t *testing.T) {
	r := start()
	r.add("a", "x", 30)
	r.n.Advance(time.Minute)
	r.add("b", "x", 18)
	r.n.Advance(time.Minute)
	r.want(t)
}

// Who takes nothing goes before who takes little by little, however much that one holds.
func TestStalledGoFirst(t *testing.T) {
	r := start()
	busy := r.add("busy", "x", 20)
	r.add("stalled", "y", 14)
	for range 3 {
		busy.taken += 10000
		r.n.Advance(pace)
	}
	r.add("new", "z", 15)
	r.want(t, "stalled")
}

// The owner with the most gives way, not the one whose only connection happens to be the largest.
func TestGreedyOwnerGivesWay(t *testing.T) {
	r := start()
	r.add("a1", "a", 10)
	r.add("a2", "a", 11)
	r.add("a3", "a", 9)
	r.add("b1", "b", 12)
	r.n.Advance(2 * pace)
	r.add("c1", "c", 7)
	r.want(t, "a1", "a2")
}

// Nobody needs to have been watched for the limit to hold.
func TestSuddenLoad(t *testing.T) {
	r := start()
	for range 40 {
		r.add("x", "x", 5)
		r.n.Run()
	}
	if r.pool.Held() > Limit {
		t.Errorf("%d MiB are held", r.pool.Held()>>20)
	}
}

// After the pressure has gone, it is noticed when it comes back.
func TestAgain(t *testing.T) {
	r := start()
	for range 3 {
		c := r.add("big", "x", 49)
		r.n.Run()
		if !c.shed {
			t.Fatal("not shed")
		}
		r.n.Advance(time.Minute)
	}
}
