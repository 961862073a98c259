package balance

import (
	"encoding/binary"
	"net/netip"
)

// Home is where the client at an address belongs, of the endpoints that are fit: by rendezvous hashing, so that every process
// chooses the same, and few clients move when endpoints come and go. It is nil if none is fit.
func (b *Balancer) Home(client netip.Addr, now int64, tried []*Endpoint) *Endpoint {
	var home *Endpoint
	most := uint64(0)
	seed := mix(0, client)
	for _, e := range b.eps {
		if w := scatter(mix(seed, e.Addr.Addr()) + uint64(e.Addr.Port())); e.Fit(now, tried) && (home == nil || w > most) {
			home, most = e, w
		}
	}
	return home
}

func mix(seed uint64, a netip.Addr) uint64 {
	b := a.As16()
	return scatter(scatter(seed^binary.BigEndian.Uint64(b[:8])) ^ binary.BigEndian.Uint64(b[8:]))
}

// scatter spreads x over all bits (the finalizer of SplitMix64, with its increment).
func scatter(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
