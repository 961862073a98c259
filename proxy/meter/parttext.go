package meter

import (
	"bytes"
	"maps"
	"slices"
)

// writeParts writes the histograms of parts. They do not tell routes apart: there are many already.
func writeParts(b *bytes.Buffer, req map[Key][]*Requests, con map[Key][]*Conns) {
	latency, upstream, accept := measured{}, measured{}, measured{}
	for k, all := range req {
		k.Route = ""
		for _, r := range all {
			for p, h := range r.parts {
				if Part(p) <= Response {
					latency.add(k, partNames[p], h)
				} else {
					upstream.add(k, partNames[p], h)
				}
			}
		}
	}
	for k, all := range con {
		for _, c := range all {
			latency.add(k, partNames[Connect], c.connect)
			accept.add(k, "", c.accept)
		}
	}
	latency.write(b, "conduit_latency_part_ms", "Where the latency of requests went, in milliseconds; the parts add up to it.")
	upstream.write(b, "conduit_upstream_part_ms", "Where the upstream part went when another proxy was between; sampled.")
	accept.write(b, "conduit_accept_queue_ms", "Time that connections waited to be accepted, in milliseconds; sampled.")
}

// measured is histograms by series, and by part if they are of parts.
type measured map[Key]map[string][]*histogram

func (m measured) add(k Key, part string, h *histogram) {
	if h == nil {
		return
	}
	if m[k] == nil {
		m[k] = map[string][]*histogram{}
	}
	m[k][part] = append(m[k][part], h)
}

func (m measured) write(b *bytes.Buffer, name, help string) {
	family(b, name, "histogram", help)
	for _, k := range slices.SortedFunc(maps.Keys(m), compare) {
		for _, part := range slices.Sorted(maps.Keys(m[k])) {
			labels := k.labels()
			if part != "" {
				labels += `,part="` + part + `"`
			}
			writeHistogram(b, name, labels, partScale, m[k][part])
		}
	}
}
