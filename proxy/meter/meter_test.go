package meter

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
)

var (
	requestKey = Key{Direction: Outbound, Src: "shop/web", Dst: `shop/"db"`, Protocol: GRPC, TLS: MTLS, Route: DefaultRoute}
	connKey    = Key{Direction: Outbound, Src: "shop/web", Dst: `shop/"db"`, Protocol: GRPC, TLS: MTLS}
)

const labels = `{direction="outbound",src="shop/web",dst="shop/\"db\"",protocol="grpc",tls="mtls"`

// now is how functions run on the loop of a Set that has none.
func now(f func()) error {
	f()
	return nil
}

func text(sets ...*Set) string {
	var b bytes.Buffer
	var all []*Reading
	for _, s := range sets {
		all = append(all, s.Read(now))
	}
	Write(&b, &Process{}, all...)
	return b.String()
}

func wantLines(t *testing.T, got string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains("\n"+got, "\n"+l+"\n") {
			t.Errorf("no line %q in\n%s", l, got)
		}
	}
}

// end counts a request of some latency.
func end(r *Requests, at, latency time.Duration, o Outcome) {
	r.Begin()
	r.Started()
	b := NewBook(&clockwork{})
	b.Ended(r, &Span{}, &exchange.Stream{Start: int64(at - latency), End: int64(at)}, o)
	b.called = true
	b.Flush()
}

func TestRequestsText(t *testing.T) {
	a, b := NewSet(10), NewSet(10)
	for _, s := range []*Set{a, b} { // two shards add up
		r := s.Requests(requestKey, 0)
		end(r, 0, 60*time.Microsecond, NewOutcome(true, 200, "0", ""))
		end(r, 0, 50*time.Microsecond, NewOutcome(false, 200, "14", mesh.ReasonConnect))
		end(r, 0, 70*time.Second, NewOutcome(false, 999, "17", ""))
		end(r, 0, -time.Second, NewOutcome(false, 0, "", mesh.ReasonDownstreamReset))
	}
	got := text(a, b)
	const route = labels + `,route="default"`
	wantLines(t, got,
		"request_total"+route+"} 8",
		"response_total"+route+`,classification="success",class="2xx",grpc_status_code="0",reason=""} 2`,
		"response_total"+route+`,classification="failure",class="2xx",grpc_status_code="14",reason="connect-failed"} 2`,
		"response_total"+route+`,classification="failure",class="5xx",grpc_status_code="other",reason=""} 2`,
		"response_total"+route+`,classification="failure",class="",grpc_status_code="",reason="downstream-reset"} 2`,
		"response_latency_ms_bucket"+route+`,le="0.05"} 4`,
		"response_latency_ms_bucket"+route+`,le="0.1"} 6`,
		"response_latency_ms_bucket"+route+`,le="50000"} 6`,
		"response_latency_ms_bucket"+route+`,le="+Inf"} 8`,
		"response_latency_ms_count"+route+"} 8",
		"response_latency_ms_sum"+route+"} 140000.22",
	)
}

func TestConnsText(t *testing.T) {
	s := NewSet(10)
	c := s.Conns(connKey, 0)
	c.Opened()
	c.Opened()
	c.Bytes(10, 20)
	c.Closed(0, mesh.ReasonUpstreamReset)
	wantLines(t, text(s),
		"tcp_open_total"+labels+"} 2",
		"tcp_open_connections"+labels+"} 1",
		"tcp_read_bytes_total"+labels+"} 10",
		"tcp_write_bytes_total"+labels+"} 20",
		"tcp_close_total"+labels+`,reason="upstream-reset"} 1`,
		"conduit_proxy_pods 0",
	)
}

// Every reason of package mesh has a counter of its own.
func TestReasonsComplete(t *testing.T) {
	for _, r := range []mesh.Reason{
		mesh.ReasonNone, mesh.ReasonNoEndpoints, mesh.ReasonConnect, mesh.ReasonConnectTimeout, mesh.ReasonTLS,
		mesh.ReasonPeerIdentity, mesh.ReasonPlaintext, mesh.ReasonUpstreamReset, mesh.ReasonUpstreamProto,
		mesh.ReasonDownstreamReset, mesh.ReasonBadRequest, mesh.ReasonTooLarge, mesh.ReasonOverload,
		mesh.ReasonDraining, mesh.ReasonNotMeshTarget, mesh.ReasonNoCertificate, mesh.ReasonTimeout, mesh.ReasonUnresolved,
	} {
		if reasonIndex(r) == len(reasons)-1 {
			t.Errorf("reason %q is counted as other", r)
		}
	}
}

// Every gRPC status has a label of its own, and so has every class; what a server makes up has one for all.
func TestEndings(t *testing.T) {
	for code := range 17 {
		c := strconv.Itoa(code)
		o := NewOutcome(true, 204, c, "")
		if ok, class, got, _ := o.unpack(); !ok || class != "2xx" || got != c {
			t.Errorf("grpc-status %s: %v %q %q", c, ok, class, got)
		}
	}
	for _, c := range []string{"17", "99", "-1", "00", "100", "x", strings.Repeat("1", 1000)} {
		o := NewOutcome(false, 100, c, "")
		if ok, class, got, _ := o.unpack(); ok || class != "1xx" || got != "other" {
			t.Errorf("grpc-status %.10s: %v %q %q", c, ok, class, got)
		}
	}
	var all tally
	for status := 100; status < 1000; status += 50 {
		for code := range 30 {
			for _, reason := range reasons {
				all.add(NewOutcome(false, status, strconv.Itoa(code), reason))
			}
		}
	}
	var n uint64
	for _, x := range all {
		n += x.n
	}
	if bound := maxTally + 2*classes*codes; len(all) > bound || n != 18*30*uint64(len(reasons)) {
		t.Errorf("%d different endings of %d: bound %d", len(all), n, bound)
	}
}

// Every kind of abuse has a counter of its own; none is not one.
func TestAbuses(t *testing.T) {
	p := &Process{}
	for _, kind := range append(abuses[:], mesh.AbuseNone) {
		p.Abused(kind)
	}
	var b bytes.Buffer
	Write(&b, p)
	for _, kind := range abuses {
		wantLines(t, b.String(), `conduit_proxy_abuse_total{kind="`+string(kind)+`"} 1`)
	}
	if strings.Count(b.String(), "conduit_proxy_abuse_total{") != len(abuses) {
		t.Errorf("kinds that nobody knows:\n%s", b.String())
	}
}

func TestGRPCClassification(t *testing.T) {
	for status, ok := range map[string]bool{"0": true, "5": true, "16": true, "": false, "2": false, "13": false, "14": false} {
		if GRPCOK(status) != ok {
			t.Errorf("grpc-status %q: ok %v", status, !ok)
		}
	}
}
