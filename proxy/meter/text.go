package meter

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Write appends everything as Prometheus text exposition (version 0.0.4), sorted. Series of several Sets with the
// same labels are added up.
func Write(b *bytes.Buffer, p *Process, sets ...*Set) {
	req, con, dropped := gather(sets)
	writeRequests(b, req)
	writeConns(b, con)
	writeProcess(b, p)
	family(b, "conduit_series_dropped_total", "counter", "Series that the bound on label sets folded into \"other\".")
	sample(b, "conduit_series_dropped_total", "", float64(dropped))
}

func gather(sets []*Set) (req [][]*Requests, con [][]*Conns, dropped uint64) {
	rm, cm := map[Key][]*Requests{}, map[Key][]*Conns{}
	for _, s := range sets {
		s.mu.Lock()
		for k, r := range s.requests {
			rm[k] = append(rm[k], r)
		}
		for k, c := range s.conns {
			cm[k] = append(cm[k], c)
		}
		s.mu.Unlock()
		dropped += s.dropped.Load()
	}
	for _, k := range sortedKeys(rm) {
		req = append(req, rm[k])
	}
	for _, k := range sortedKeys(cm) {
		con = append(con, cm[k])
	}
	return req, con, dropped
}

func sortedKeys[V any](m map[Key]V) []Key {
	keys := make([]Key, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Src, b.Src), cmp.Compare(a.Dst, b.Dst),
			cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.TLS, b.TLS))
	})
	return keys
}

func writeRequests(b *bytes.Buffer, all [][]*Requests) {
	family(b, "request_total", "counter", "HTTP requests received.")
	for _, rs := range all {
		sample(b, "request_total", rs[0].key.labels(), total(rs, func(r *Requests) uint64 { return r.total.Load() }))
	}
	family(b, "response_total", "counter", "HTTP responses, by whether the server answered well.")
	for _, rs := range all {
		l := rs[0].key.labels()
		if n := total(rs, func(r *Requests) uint64 { return r.success.Load() }); n > 0 {
			sample(b, "response_total", l+`,classification="success",reason=""`, n)
		}
		for i := range reasons {
			n := total(rs, func(r *Requests) uint64 { return r.failure.Load().at(i) })
			if n > 0 {
				sample(b, "response_total", l+`,classification="failure",reason="`+string(reasons[i])+`"`, n)
			}
		}
	}
	family(b, "response_latency_ms", "histogram", "Time from a request's head to its response's end, in milliseconds.")
	for _, rs := range all {
		writeHistogram(b, rs)
	}
}

func writeHistogram(b *bytes.Buffer, rs []*Requests) {
	l := rs[0].key.labels()
	sum := 0.0
	for i := range len(Buckets) + 1 {
		sum += total(rs, func(r *Requests) uint64 { return r.buckets[i].Load() })
		le := "+Inf"
		if i < len(Buckets) {
			le = number(Buckets[i])
		}
		sample(b, "response_latency_ms_bucket", l+`,le="`+le+`"`, sum)
	}
	nanos := total(rs, func(r *Requests) uint64 { return r.sumNanos.Load() })
	sample(b, "response_latency_ms_sum", l, nanos/1e6)
	sample(b, "response_latency_ms_count", l, sum)
}

func writeConns(b *bytes.Buffer, all [][]*Conns) {
	for _, m := range []struct {
		name, kind, help string
		get              func(*Conns) uint64
	}{
		{"tcp_open_total", "counter", "Connections opened.", func(c *Conns) uint64 { return c.opened.Load() }},
		{"tcp_open_connections", "gauge", "Connections open now.", func(c *Conns) uint64 { return uint64(max(c.open.Load(), 0)) }},
		{"tcp_read_bytes_total", "counter", "Bytes read from clients.", func(c *Conns) uint64 { return c.read.Load() }},
		{"tcp_write_bytes_total", "counter", "Bytes written to clients.", func(c *Conns) uint64 { return c.wrote.Load() }},
	} {
		family(b, m.name, m.kind, m.help)
		for _, cs := range all {
			sample(b, m.name, cs[0].key.labels(), total(cs, m.get))
		}
	}
	family(b, "tcp_close_total", "counter", "Connections closed, by reason; an orderly end has none.")
	for _, cs := range all {
		for i := range reasons {
			if n := total(cs, func(c *Conns) uint64 { return c.closed[i].Load() }); n > 0 {
				sample(b, "tcp_close_total", cs[0].key.labels()+`,reason="`+string(reasons[i])+`"`, n)
			}
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
		{"conduit_proxy_refused_plaintext_total", "counter", "Connections without mTLS that STRICT refused.", float64(p.RefusedPlaintext.Load())},
		{"conduit_proxy_mesh_connections_open", "gauge", "mTLS connections between proxies that are open, both roles.", float64(p.MeshOpen.Load())},
		{"conduit_proxy_mesh_connections_dialled_total", "counter", "mTLS connections dialled.", float64(p.MeshDialled.Load())},
		{"conduit_proxy_retries_total", "counter", "Streams sent to another endpoint after the first was lost.", float64(p.Retries.Load())},
		{"conduit_proxy_snapshot_version", "gauge", "Version of the discovery snapshot in force; 0 for none.", float64(p.Snapshot.Load())},
		{"conduit_proxy_pods", "gauge", "Pods whose listeners the proxy holds.", float64(p.Pods.Load())},
		{"conduit_proxy_pods_draining", "gauge", "Pods that are leaving with connections open.", float64(p.Draining.Load())},
	} {
		family(b, m.name, m.kind, m.help)
		sample(b, m.name, "", m.v)
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

// at is one counter of a set that may not exist yet.
func (b *byReason) at(i int) uint64 {
	if b == nil {
		return 0
	}
	return b[i].Load()
}

func total[T any](all []T, get func(T) uint64) float64 {
	var n uint64
	for _, x := range all {
		n += get(x)
	}
	return float64(n)
}

func (k Key) labels() string {
	return `direction="` + string(k.Direction) + `",src="` + escape(k.Src) + `",dst="` + escape(k.Dst) +
		`",protocol="` + k.Protocol + `",tls="` + k.TLS + `"`
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func escape(s string) string { return escaper.Replace(s) }

func family(b *bytes.Buffer, name, kind, help string) {
	b.WriteString("# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n")
}

func sample(b *bytes.Buffer, name, labels string, v float64) {
	b.WriteString(name)
	if labels != "" {
		b.WriteString("{" + labels + "}")
	}
	b.WriteByte(' ')
	b.WriteString(number(v))
	b.WriteByte('\n')
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
