package meter

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
)

var key = Key{Direction: Outbound, Src: "shop/web", Dst: `shop/"db"`, Protocol: GRPC, TLS: MTLS}

const labels = `{direction="outbound",src="shop/web",dst="shop/\"db\"",protocol="grpc",tls="mtls"`

func text(sets ...*Set) string {
	var b bytes.Buffer
	Write(&b, &Process{}, sets...)
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

func TestRequestsText(t *testing.T) {
	a, b := NewSet(10), NewSet(10)
	for _, s := range []*Set{a, b} { // two shards add up
		r := s.Requests(key)
		r.Started()
		r.Ended(60*time.Microsecond, true, mesh.ReasonNone)
		r.Started()
		r.Ended(50*time.Microsecond, false, mesh.ReasonConnect)
		r.Started()
		r.Ended(70*time.Second, false, mesh.ReasonNone)
	}
	got := text(a, b)
	wantLines(t, got,
		"request_total"+labels+"} 6",
		"response_total"+labels+`,classification="success",reason=""} 2`,
		"response_total"+labels+`,classification="failure",reason="connect-failed"} 2`,
		"response_total"+labels+`,classification="failure",reason=""} 2`,
		"response_latency_ms_bucket"+labels+`,le="0.05"} 2`,
		"response_latency_ms_bucket"+labels+`,le="0.1"} 4`,
		"response_latency_ms_bucket"+labels+`,le="50000"} 4`,
		"response_latency_ms_bucket"+labels+`,le="+Inf"} 6`,
		"response_latency_ms_count"+labels+"} 6",
		"response_latency_ms_sum"+labels+"} 140000.22",
	)
}

func TestConnsText(t *testing.T) {
	s := NewSet(10)
	c := s.Conns(key)
	c.Opened()
	c.Opened()
	c.Bytes(10, 20)
	c.Closed(mesh.ReasonUpstreamReset)
	wantLines(t, text(s),
		"tcp_open_total"+labels+"} 2",
		"tcp_open_connections"+labels+"} 1",
		"tcp_read_bytes_total"+labels+"} 10",
		"tcp_write_bytes_total"+labels+"} 20",
		"tcp_close_total"+labels+`,reason="upstream-reset"} 1`,
		"conduit_proxy_pods 0",
	)
}

func TestSeriesAreBounded(t *testing.T) {
	s := NewSet(2)
	for _, dst := range []string{"a", "b", "c", "d", "a"} {
		s.Requests(Key{Direction: Outbound, Src: "x", Dst: dst, Protocol: HTTP1, TLS: None}).Started()
	}
	wantLines(t, text(s),
		`request_total{direction="outbound",src="x",dst="a",protocol="http1",tls="none"} 2`,
		`request_total{direction="outbound",src="other",dst="other",protocol="http1",tls="none"} 2`,
		"conduit_series_dropped_total 2",
	)
	if len(s.requests) != 3 {
		t.Errorf("%d series", len(s.requests))
	}
}

// Every reason of package mesh has a counter of its own.
func TestReasonsComplete(t *testing.T) {
	for _, r := range []mesh.Reason{
		mesh.ReasonNone, mesh.ReasonNoEndpoints, mesh.ReasonConnect, mesh.ReasonConnectTimeout, mesh.ReasonTLS,
		mesh.ReasonPeerIdentity, mesh.ReasonPlaintext, mesh.ReasonUpstreamReset, mesh.ReasonUpstreamProto,
		mesh.ReasonDownstreamReset, mesh.ReasonBadRequest, mesh.ReasonTooLarge, mesh.ReasonOverload,
		mesh.ReasonDraining, mesh.ReasonNotMeshTarget, mesh.ReasonNoCertificate, mesh.ReasonTimeout,
	} {
		if reasonIndex(r) == len(reasons)-1 {
			t.Errorf("reason %q is counted as other", r)
		}
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

func TestConcurrentReadAndCount(t *testing.T) {
	s := NewSet(1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 500 {
			s.Conns(Key{Src: string(rune('a' + i%26)), Dst: "d"}).Opened()
			s.Requests(Key{Src: string(rune('a' + i%26)), Dst: "d"}).Ended(1, false, mesh.ReasonTLS)
		}
	}()
	for open := true; open; {
		text(s)
		select {
		case <-done:
			open = false
		default:
		}
	}
}
