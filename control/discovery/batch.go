package discovery

import (
	"net/netip"
	"slices"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"

	"google.golang.org/protobuf/proto"
)

// batch is what a stream or a lookup is to be told at one version.
type batch struct {
	x     *Index
	since uint64 // what is not newer is held already
	seen  map[*workload]struct{}
	whole map[*entry]uint64 // services in it, and since when

	answers   []*discoveryv1.Answer
	services  []*discoveryv1.Service
	endpoints []*discoveryv1.EndpointsUpdate
	workloads []*discoveryv1.Workload
}

func (x *Index) batch(since uint64) *batch {
	return &batch{x: x, since: since, seen: map[*workload]struct{}{}, whole: map[*entry]uint64{}}
}

// Next is what is to be sent now, in one or more responses of one version; nil: nothing. The messages are shared: do not
// change what is in them.
func (st *Stream) Next() []*discoveryv1.WatchResponse {
	x := st.x
	x.mu.Lock()
	b := x.batch(st.since)
	first, reset := st.fresh, st.fresh && st.since == 0
	for _, m := range st.refused {
		b.answers = append(b.answers, &discoveryv1.Answer{Address: m, Kind: discoveryv1.Answer_KIND_REFUSED})
	}
	for a := range st.answers {
		st.answer(b, a)
	}
	for s, p := range st.services {
		if _, whole := b.whole[s]; !whole {
			b.update(s, p)
		}
	}
	for w := range st.workloads {
		b.workload(w, 0)
	}
	head := &discoveryv1.WatchResponse{Reset_: reset}
	if st.moved {
		n := x.nodeRecord(st.node)
		head.Locality = &discoveryv1.Locality{Node: st.node, Zone: n.zone, Region: n.region}
	}
	st.since, st.fresh, st.moved, st.refused = 0, false, false, nil
	st.answers, st.services, st.workloads = emptied(st.answers), emptied(st.services), emptied(st.workloads)
	position := &discoveryv1.Position{Epoch: x.epoch, Version: x.version}
	x.mu.Unlock()
	if !first && head.Locality == nil && len(b.answers)+len(b.services)+len(b.endpoints)+len(b.workloads) == 0 {
		return nil
	}
	return b.responses(head, position)
}

// emptied is m without what was in it; one that was large, as at the start of a stream, does not keep its room.
func emptied[K comparable, V any](m map[K]V) map[K]V {
	if len(m) > 32 {
		return map[K]V{}
	}
	clear(m)
	return m
}

// answer brings the subscriptions to an address up to date.
func (st *Stream) answer(b *batch, a netip.Addr) {
	subs := st.subs[a]
	for i := range subs {
		s := &subs[i]
		m, leads, w, version := st.x.answer(a, s.port)
		held := s.answer && version <= b.since // by the stream that this one resumes
		if !held {
			b.answers = append(b.answers, m)
		}
		since := b.since
		if !held {
			since = 0
		}
		from := s.leads
		s.leads, s.answer = leads, true
		if leads != from && st.lead(from, leads) || leads != nil && leads == from && since == 0 && b.since > 0 {
			b.service(leads, since)
		}
		if w != nil {
			b.workload(w, since)
		}
	}
}

// service adds a service that the client does not have, or has as it was at since.
func (b *batch) service(s *entry, since uint64) {
	if have, there := b.whole[s]; there && have <= since {
		return
	}
	b.whole[s] = since
	if s.rec != nil && s.version > since {
		b.services = append(b.services, s.rec.msg)
	}
	u := &discoveryv1.EndpointsUpdate{Service: s.name.String(), Replace: since == 0 || s.removed > since}
	for _, e := range s.endpoints {
		if e.msg == nil {
			continue
		}
		if u.Replace || e.version > since {
			u.Endpoints = append(u.Endpoints, e.msg)
		}
		if e.version > since { // it may be the first to name its workload
			b.workload(e.pod, 0)
		} else {
			b.workload(e.pod, since)
		}
	}
	if u.Replace || len(u.Endpoints) > 0 {
		b.endpoints = append(b.endpoints, u)
	}
}

// update adds what has changed of a service that the client has.
func (b *batch) update(s *entry, p *pending) {
	if p.all {
		b.service(s, 0)
		return
	}
	if p.described && s.rec != nil {
		b.services = append(b.services, s.rec.msg)
	}
	if len(p.ids) == 0 {
		return
	}
	u := &discoveryv1.EndpointsUpdate{Service: s.name.String()}
	for id := range p.ids {
		if e := s.endpoints[id]; e != nil && e.msg != nil {
			u.Endpoints = append(u.Endpoints, e.msg)
			b.workload(e.pod, 0)
		} else {
			u.Removed = append(u.Removed, id)
		}
	}
	b.endpoints = append(b.endpoints, u)
}

// workload adds one that is newer than since, once; nil and those that are gone are passed over.
func (b *batch) workload(w *workload, since uint64) {
	if w == nil || w.msg == nil || w.version <= since {
		return
	}
	if _, there := b.seen[w]; !there {
		b.seen[w] = struct{}{}
		b.workloads = append(b.workloads, w.msg)
	}
}

// maxResponse is about how large a response becomes, in bytes; a single resource may make it larger.
const maxResponse = 256 << 10

// responses cuts b into messages: workloads first, so that nothing refers to what has yet to come.
func (b *batch) responses(head *discoveryv1.WatchResponse, position *discoveryv1.Position) []*discoveryv1.WatchResponse {
	out := []*discoveryv1.WatchResponse{head}
	size := 0
	room := func(m proto.Message) *discoveryv1.WatchResponse {
		n := proto.Size(m) + 4
		if size > 0 && size+n > maxResponse {
			out, size = append(out, &discoveryv1.WatchResponse{}), 0
		}
		size += n
		return out[len(out)-1]
	}
	for _, m := range b.workloads {
		r := room(m)
		r.Workloads = append(r.Workloads, m)
	}
	for _, m := range b.endpoints {
		for _, part := range split(m) {
			r := room(part)
			r.Endpoints = append(r.Endpoints, part)
		}
	}
	for _, m := range b.services {
		r := room(m)
		r.Services = append(r.Services, m)
	}
	for _, m := range b.answers {
		r := room(m)
		r.Answers = append(r.Answers, m)
	}
	for i, r := range out {
		r.Position, r.More = position, i < len(out)-1
	}
	return out
}

// maxEndpoints is how many endpoints one update has; each has some 100 bytes.
const maxEndpoints = 1000

// split cuts a large update: the first part replaces, the others add.
func split(u *discoveryv1.EndpointsUpdate) []*discoveryv1.EndpointsUpdate {
	if len(u.Endpoints) <= maxEndpoints {
		return []*discoveryv1.EndpointsUpdate{u}
	}
	var out []*discoveryv1.EndpointsUpdate
	for part := range slices.Chunk(u.Endpoints, maxEndpoints) {
		out = append(out, &discoveryv1.EndpointsUpdate{Service: u.Service, Endpoints: part})
	}
	out[0].Replace, out[0].Removed = u.Replace, u.Removed
	return out
}
