package meter

import (
	"bytes"
	"cmp"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// lineSize is about how long a line is.
const lineSize = 150

// Write appends everything as Prometheus text exposition (version 0.0.4), sorted. Series of several Sets with the
// same labels are added up.
func Write(b *bytes.Buffer, p *Process, readings ...*Reading) {
	req, con := map[Key][]*Requests{}, map[Key][]*Conns{}
	var dropped, expired uint64
	lines := 100
	for _, r := range readings {
		for _, x := range r.requests {
			req[x.key] = append(req[x.key], x)
			lines += len(latencyScale.le) + 5 + x.parts.measured()*(len(partScale.le)+2)
		}
		for _, x := range r.conns {
			con[x.key] = append(con[x.key], x)
			lines += 6
		}
		dropped, expired = dropped+r.dropped, expired+r.expired
	}
	// Room for nearly all of it at once: a proxy with many series has megabytes to say, and little memory.
	b.Grow(lines * lineSize)
	writeRequests(b, sorted(req))
	writeConns(b, sorted(con))
	writeParts(b, req, con)
	writeProcess(b, p)
	family(b, "conduit_series_dropped_total", "counter", "What the bound on series folded into \"other\".")
	sample(b, "conduit_series_dropped_total", "", float64(dropped))
	family(b, "conduit_series_expired_total", "counter", "Series that were dropped because nothing had used them for long.")
	sample(b, "conduit_series_expired_total", "", float64(expired))
}

// alike is series of several shards with the same labels.
type alike[T any] struct {
	labels string
	all    []*T
}

func sorted[T any](m map[Key][]*T) []alike[T] {
	out := make([]alike[T], 0, len(m))
	for _, k := range slices.SortedFunc(maps.Keys(m), compare) {
		out = append(out, alike[T]{k.labels(), m[k]})
	}
	return out
}

func compare(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Src, b.Src), cmp.Compare(a.Dst, b.Dst),
		cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.TLS, b.TLS), cmp.Compare(a.Route, b.Route))
}

// total adds up what get finds in each.
func (a *alike[T]) total(get func(*T) uint64) float64 {
	var n uint64
	for _, x := range a.all {
		n += get(x)
	}
	return float64(n)
}

func each[T, V any](all []T, get func(T) V) []V {
	out := make([]V, len(all))
	for i := range all {
		out[i] = get(all[i])
	}
	return out
}

func writeRequests(b *bytes.Buffer, all []alike[Requests]) {
	family(b, "request_total", "counter", "HTTP requests received.")
	for _, a := range all {
		sample(b, "request_total", a.labels, a.total(func(r *Requests) uint64 { return r.total }))
	}
	family(b, "response_total", "counter", "HTTP responses, by whether the server answered well, and how.")
	for _, a := range all {
		for _, x := range sum(each(a.all, func(r *Requests) tally { return r.ended })) {
			ok, class, code, reason := x.o.unpack()
			classification := "failure"
			if ok {
				classification = "success"
			}
			sample(b, "response_total", a.labels+`,classification="`+classification+`",class="`+class+
				`",grpc_status_code="`+code+`",reason="`+reason+`"`, float64(x.n))
		}
	}
	family(b, "response_latency_ms", "histogram", "Time from a request's head to its response's end, in milliseconds.")
	for _, a := range all {
		writeHistogram(b, "response_latency_ms", a.labels, latencyScale, each(a.all, func(r *Requests) *histogram { return &r.latency }))
	}
}

// writeHistogram writes the sum of histograms with one scale.
func writeHistogram(b *bytes.Buffer, name, labels string, s *scale, all []*histogram) {
	runtime.Gosched() // a loop that has work does not wait for the whole text
	var n, nanos uint64
	for i, le := range s.le {
		for _, h := range all {
			n += h.at(i)
		}
		for _, x := range [...]string{name, "_bucket{", labels, `,le="`, le, `"} `} {
			b.WriteString(x)
		}
		value(b, float64(n))
	}
	for _, h := range all {
		nanos += h.sum
	}
	sample(b, name+"_sum", labels, float64(nanos)/1e6)
	sample(b, name+"_count", labels, float64(n))
}

func writeConns(b *bytes.Buffer, all []alike[Conns]) {
	for _, m := range []struct {
		name, kind, help string
		get              func(*Conns) uint64
	}{
		{"tcp_open_total", "counter", "Connections opened.", func(c *Conns) uint64 { return c.opened }},
		{"tcp_open_connections", "gauge", "Connections open now.", func(c *Conns) uint64 { return uint64(max(c.busy, 0)) }},
		{"tcp_read_bytes_total", "counter", "Bytes read from clients.", func(c *Conns) uint64 { return c.read }},
		{"tcp_write_bytes_total", "counter", "Bytes written to clients.", func(c *Conns) uint64 { return c.wrote }},
	} {
		family(b, m.name, m.kind, m.help)
		for _, a := range all {
			sample(b, m.name, a.labels, a.total(m.get))
		}
	}
	family(b, "tcp_close_total", "counter", "Connections closed, by reason; an orderly end has none.")
	for _, a := range all {
		for _, x := range sum(each(a.all, func(c *Conns) tally { return c.closed })) {
			_, _, _, reason := x.o.unpack()
			sample(b, "tcp_close_total", a.labels+`,reason="`+reason+`"`, float64(x.n))
		}
	}
}

func writeProcess(b *bytes.Buffer, p *Process) {
	for _, m := range []struct {
		name, kind, help string
		v                float64
	}{
		{"conduit_proxy_connections_total", "counter", "Connections accepted.", float64(p.Accepted.Load())},
		{"conduit_proxy_connections_open", "gauge", "Accepted connections that are open.", float64(p.Open.Load())},
		{"conduit_proxy_unresolved_total", "counter", "Outbound connections to an address of which nobody said in time who has it.", float64(p.Unresolved.Load())},
		{"conduit_proxy_accept_stops_total", "counter", "Times that a listener stopped accepting for want of descriptors.", float64(p.AcceptStops.Load())},
		{"conduit_proxy_refused_plaintext_total", "counter", "Connections without mTLS that STRICT refused.", float64(p.RefusedPlaintext.Load())},
		{"conduit_proxy_mesh_connections_open", "gauge", "mTLS connections between proxies that are open, both roles.", float64(p.MeshOpen.Load())},
		{"conduit_proxy_mesh_connections_dialled_total", "counter", "mTLS connections dialled.", float64(p.MeshDialled.Load())},
		{"conduit_proxy_retries_total", "counter", "Streams sent to another endpoint after the first was lost.", float64(p.Retries.Load())},
		{"conduit_proxy_snapshot_version", "gauge", "Version of the discovery snapshot in force; 0 for none.", float64(p.Snapshot.Load())},
		{"conduit_proxy_pods", "gauge", "Pods whose listeners the proxy holds.", float64(p.Pods.Load())},
		{"conduit_proxy_pods_draining", "gauge", "Pods that are leaving with connections open.", float64(p.Draining.Load())},
		{"conduit_proxy_goroutines", "gauge", "Goroutines of the process.", float64(runtime.NumGoroutine())},
	} {
		family(b, m.name, m.kind, m.help)
		sample(b, m.name, "", m.v)
	}
	family(b, "conduit_proxy_certificate_expiry_seconds", "gauge", "When a certificate expires, in seconds since 1970.")
	for _, c := range p.Certificates {
		sample(b, "conduit_proxy_certificate_expiry_seconds", `certificate="`+escape(c.Name)+`"`, float64(c.End.Unix()))
	}
	family(b, "conduit_proxy_abuse_total", "counter", "Peers that asked for much work or memory with little of their own, by kind.")
	for i := range abuses {
		if n := p.abuse[i].Load(); n > 0 {
			sample(b, "conduit_proxy_abuse_total", `kind="`+string(abuses[i])+`"`, float64(n))
		}
	}
	for _, m := range []struct {
		name, help string
		c          *byReason
	}{
		{"conduit_proxy_handshakes_failed_total", "TLS handshakes that failed, by reason.", &p.handshakes},
		{"conduit_proxy_connections_failed_total", "Accepted connections that the mesh itself ended, by reason.", &p.refused},
	} {
		family(b, m.name, "counter", m.help)
		for i := range reasons {
			if n := m.c[i].Load(); n > 0 {
				sample(b, m.name, `reason="`+string(reasons[i])+`"`, float64(n))
			}
		}
	}
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func escape(s string) string { return escaper.Replace(s) }

func family(b *bytes.Buffer, name, kind, help string) {
	b.WriteString("# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n")
}

func sample(b *bytes.Buffer, name, labels string, v float64) {
	b.WriteString(name)
	if labels != "" {
		b.WriteByte('{')
		b.WriteString(labels)
		b.WriteByte('}')
	}
	b.WriteByte(' ')
	value(b, v)
}

// value ends a line.
func value(b *bytes.Buffer, v float64) {
	b.Write(strconv.AppendFloat(b.AvailableBuffer(), v, 'f', -1, 64))
	b.WriteByte('\n')
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
