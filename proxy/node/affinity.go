package node

import (
	"net/netip"
	"time"

	"conduit.io/conduit/proxy/balance"
)

// maxAffinities bounds the affinities of a shard, which take some 150 bytes each. Beyond it old ones make room for new ones.
const maxAffinities = 4096

// affinityKey says whose affinity it is, as kube-proxy has it: one client's, to one port of a Service, by whichever of its
// addresses of a family it is dialled.
type affinityKey struct {
	client  *pod
	service string // label
	port    uint16 // the Service's
	v4      bool
}

// affinity keeps a client with an endpoint (a Service's sessionAffinity: ClientIP).
type affinity struct {
	addr netip.AddrPort // of the endpoint
	hold time.Duration
	used int64 // when a stream last went there
}

func (a *affinity) holds(now int64) bool { return a != nil && now-a.used <= int64(a.hold) }

// affinities are a shard's. A pod's connections are all accepted in one shard, so that nothing is missing here.
type affinities map[affinityKey]*affinity

// put keeps a client with the endpoint at addr from now on.
func (all affinities) put(k affinityKey, addr netip.AddrPort, hold time.Duration, now int64) {
	a := all[k]
	if a == nil {
		if len(all) >= maxAffinities {
			all.evict()
		}
		a = &affinity{}
		all[k] = a
	}
	a.addr, a.hold, a.used = addr, hold, now
}

// evict drops the one that was used longest ago of a few: the map begins somewhere else each time.
func (all affinities) evict() {
	const some = 8
	var oldest affinityKey
	n, used := 0, int64(0)
	for k, a := range all {
		if n == 0 || a.used < used {
			oldest, used = k, a.used
		}
		if n++; n == some {
			break
		}
	}
	delete(all, oldest)
}

func (all affinities) drop(which func(affinityKey, *affinity) bool) {
	for k, a := range all {
		if which(k, a) {
			delete(all, k)
		}
	}
}

// sticky is a target with an affinity. Its connections have targets of their own.
type sticky struct {
	key    affinityKey
	client netip.Addr
	hold   time.Duration
	mine   *balance.Endpoint // where the connection's last stream went; nil before the first
}

// own is tg for one connection, which stays with its endpoint for as long as it lives, as it would without a proxy. before
// is the connection's target until now, or nil.
func (tg *target) own(before *target) *target {
	one, st := *tg, *tg.sticky
	one.sticky = &st
	if before != nil && before.sticky != nil && before.sticky.mine != nil {
		st.mine = tg.balancer.At(before.sticky.mine.Addr)
	}
	return &one
}

// pick chooses the endpoint for a stream. With an affinity that is the connection's, or else the client's, or else where the client
// belongs: a new proxy, which knows of no affinity, leads it to where it was. An endpoint that has gone, or cannot be reached, loses
// both to another.
func (sh *shard) pick(tg *target, tried []*balance.Endpoint) *balance.Endpoint {
	now, st := sh.loop.Now(), tg.sticky
	if st == nil {
		return tg.balancer.Pick(now, tried)
	}
	a := sh.affinities[st.key]
	if st.mine == nil && a.holds(now) {
		st.mine = tg.balancer.At(a.addr)
	}
	moves := st.mine == nil || !st.mine.Fit(now, tried)
	if moves {
		if st.mine = tg.balancer.Home(st.client, now, tried); st.mine == nil {
			st.mine = tg.balancer.Pick(now, tried)
		}
	}
	if st.mine != nil && (moves || !a.holds(now) || a.addr == st.mine.Addr) {
		sh.affinities.put(st.key, st.mine.Addr, st.hold, now)
	}
	return st.mine
}
