package h2_test

import (
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h2"

	"golang.org/x/net/http2"
)

// pings are the PINGs that a peer got, acknowledgements left out.
func pings(h *exchangetest.H2) (n int) {
	for _, f := range h.Find(http2.FramePing, 0) {
		if !f.Flags.Has(http2.FlagPingAck) {
			n++
		}
	}
	return n
}

// answerPing acknowledges the last PING.
func answerPing(h *exchangetest.H2) {
	all := h.Find(http2.FramePing, 0)
	_ = h.F.WritePing(true, [8]byte(all[len(all)-1].Data))
	h.Flush()
}

// A client that says nothing, half a preface, or no SETTINGS, is not kept.
func TestClientMustBegin(t *testing.T) {
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	const acked = "\x00\x00\x00\x04\x01\x00\x00\x00\x00"
	for _, tt := range []struct {
		said string
		code http2.ErrCode
	}{
		{"", http2.ErrCodeProtocol},
		{http2.ClientPreface[:10], http2.ErrCodeProtocol},
		{http2.ClientPreface, http2.ErrCodeProtocol},
		{http2.ClientPreface + settings, http2.ErrCodeSettingsTimeout},
		{http2.ClientPreface + settings + acked, 0},
	} {
		n := flowtest.New()
		a, b := n.Pair()
		var seen []exchange.Violation
		h2.NewServer(b, &exchangetest.Handler{}, exchange.ServerOptions{Clock: n, OnViolation: func(v exchange.Violation) { seen = append(seen, v) }})
		c := exchangetest.NewH2(a, false) // it only reads
		c.OnData = nil
		c.Rude = true
		c.Send(tt.said)
		n.Run()
		n.Advance(9 * time.Second)
		if c.Over() {
			t.Fatalf("%q: gone too early", tt.said)
		}
		n.Advance(2 * time.Second)
		got := c.Take()
		if tt.code == 0 {
			if c.Over() {
				t.Errorf("%q: gone", tt.said)
			}
			continue
		}
		if want := raw(7, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(tt.code)); !c.Over() || got[len(got)-len(want):] != want {
			t.Errorf("%q: over %v, the last that came is %q", tt.said, c.Over(), got)
		}
		if len(seen) != 1 || seen[0].Reason != mesh.ReasonTimeout {
			t.Errorf("%q: %v", tt.said, seen)
		}
	}
}

// A server that says nothing fails the streams sent to it, with a reason.
func TestServerMustBegin(t *testing.T) {
	n := flowtest.New()
	h := &exchangetest.Handler{}
	a, b := n.Pair()
	x, y := n.Pair()
	exchangetest.NewPeer(y)
	cl := h2.NewClient(x, exchange.ClientOptions{Clock: n})
	h.Up = func(*exchange.Stream) exchange.Upstream { return cl }
	h2.NewServer(b, h, exchange.ServerOptions{Clock: n})
	client := exchangetest.NewH2(a, true)
	client.Settings()
	client.Headers(1, true, getReq...)
	n.Run()
	n.Advance(29 * time.Second)
	if h.Open != 1 {
		t.Fatal("the request is gone too early")
	}
	n.Advance(2 * time.Second)
	if client.Field(1, 0, ":status") != "504" || client.Field(1, 0, "conduit-reason") != string(mesh.ReasonTimeout) || cl.Room() != 0 {
		t.Errorf("got %v", client.Find(http2.FrameHeaders, 1))
	}
}

// An idle connection of a client goes away in order; one that is used does not.
func TestIdleClientIsSentAway(t *testing.T) {
	r := newRig(false)
	for i := range 6 { // a request each quarter of an hour, the first of them a long one
		id := uint32(1 + 2*i)
		r.client.Headers(id, true, getReq...)
		r.n.Run()
		if i == 0 {
			r.n.Advance(2 * time.Hour)
		}
		r.app.Headers(id, true, ":status", "204")
		r.n.Run()
		r.n.Advance(15 * time.Minute)
	}
	if _, gone := r.goAway(t); gone {
		t.Fatal("a connection in use was sent away")
	}
	for range 45 {
		r.n.Advance(time.Minute)
		if _, gone := r.goAway(t); gone {
			break
		}
	}
	f := r.client.Find(http2.FrameGoAway, 0)
	if len(f) != 1 || f[0].Last != 1<<31-1 || f[0].Code != http2.ErrCodeNo {
		t.Fatalf("after an hour: %v", f)
	}
	r.client.Headers(13, true, getReq...) // was on its way
	answerPing(r.client)
	r.n.Run()
	r.app.Headers(13, true, ":status", "204")
	r.n.Run()
	if r.client.Field(13, 0, ":status") != "204" || !r.client.Over() || r.closed != 1 {
		t.Errorf("the last request got %v, over %v", r.client.Find(http2.FrameHeaders, 13), r.client.Over())
	}
	r.check(t)
}

// A proxy that has fallen silent while streams wait is asked, and given up when it does not answer. What can be sent again
// is; the rest has a reason.
func TestSilentLinkIsGivenUp(t *testing.T) {
	r := newRig(true)
	other, _, app2 := r.newClient(true, func(bool) {})
	app2.Settings()
	r.h.OnLost = func(s *exchange.Stream, reason mesh.Reason) bool {
		if reason != mesh.ReasonTimeout || r.cl.Room() != 0 {
			t.Errorf("lost for %q, room for %d", reason, r.cl.Room())
		}
		if s.Req.Method != "GET" {
			return false
		}
		s.Forward(other, nil)
		return true
	}
	r.client.Headers(1, true, getReq...)
	r.client.Headers(3, true, postReq...)
	r.n.Run()
	for seen := range 5 { // it answers: it is merely slow
		for pings(r.app) == seen {
			r.n.Advance(time.Second)
		}
		answerPing(r.app)
		r.n.Run()
	}
	if n := pings(r.app); n < 2 || r.h.Losses != 0 {
		t.Fatalf("%d PINGs, %d streams lost", n, r.h.Losses)
	}
	r.n.Advance(10 * time.Second)
	r.n.Advance(10 * time.Second)
	r.n.Advance(10 * time.Second)
	if r.h.Losses != 2 || !r.app.IsReset() {
		t.Fatalf("%d streams lost, connection reset: %v", r.h.Losses, r.app.IsReset())
	}
	if r.client.Field(3, 0, ":status") != "504" || r.client.Field(3, 0, "conduit-reason") != string(mesh.ReasonTimeout) {
		t.Errorf("POST got %v", r.client.Find(http2.FrameHeaders, 3))
	}
	app2.Headers(1, true, ":status", "204")
	r.n.Run()
	if r.client.Field(1, 0, ":status") != "204" {
		t.Errorf("GET got %v", r.client.Find(http2.FrameHeaders, 1))
	}
}

// An application is asked so rarely that a gRPC server does not mind, and not at all when nothing is asked of it.
func TestApplicationsAreRarelyAsked(t *testing.T) {
	r := newRig(false)
	r.n.Advance(time.Hour)
	if n := pings(r.app); n != 0 {
		t.Fatalf("%d PINGs on an idle connection", n)
	}
	r.client.Headers(1, true, getReq...)
	r.n.Run()
	for range 30 {
		r.n.Advance(10 * time.Second)
	}
	if n := pings(r.app); n != 0 {
		t.Fatalf("%d PINGs in five minutes", n)
	}
	r.n.Advance(20 * time.Second)
	if n := pings(r.app); n != 1 {
		t.Fatalf("%d PINGs", n)
	}
	answerPing(r.app)
	r.n.Run()
	r.n.Advance(6 * time.Minute)
	r.app.Headers(1, true, ":status", "204")
	r.n.Run()
	if r.client.Field(1, 0, ":status") != "204" {
		t.Error("a slow response was lost")
	}
}
