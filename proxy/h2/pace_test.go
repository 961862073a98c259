package h2_test

import (
	"testing"
	"time"

	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2"
)

// TestSlowBodies as in package h1: only what was announced is owed.
func TestSlowBodies(t *testing.T) {
	sized := with(postReq, "content-length", "1000000")
	grpc := with(postReq, "content-type", "application/grpc", "te", "trailers")
	for _, tt := range []struct {
		name     string
		head     []string
		first    int // bytes at once
		drip     int // bytes every 10 s
		answered bool
		stuck    bool // the server's window stays shut
		cut      bool
	}{
		{name: "silent", head: sized, cut: true},
		{name: "dripping", head: sized, drip: 100, cut: true},
		{name: "slow", head: sized, drip: 3000},
		{name: "of no announced length", head: postReq, first: 10},
		{name: "gRPC", head: grpc, first: 10},
		{name: "the response has begun", head: sized, answered: true},
		{name: "the server takes nothing", head: sized, first: 200 << 10, stuck: true},
	} {
		r := newRig(false)
		if tt.stuck {
			r.app.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000})
			r.n.Run()
		}
		r.client.Headers(1, false, tt.head...)
		for n := 0; n < tt.first; n += 10 {
			r.client.Body(1, false, make([]byte, 10))
		}
		r.n.Run()
		if tt.answered {
			r.app.Headers(1, false, ":status", "200")
		}
		for range 60 {
			if tt.drip > 0 && r.h.Open > 0 {
				r.client.Body(1, false, make([]byte, tt.drip))
			}
			r.n.Advance(10 * time.Second)
		}
		status := r.client.Field(1, 0, ":status")
		if cut := status == "408"; cut != tt.cut || cut != (len(r.abuses) == 1) || cut != (r.h.Open == 0) {
			t.Errorf("%s: status %q, abuses %v, open %d", tt.name, status, r.abuses, r.h.Open)
		}
		if !tt.cut {
			continue
		}
		if f := r.client.Find(http2.FrameRSTStream, 1); len(f) != 1 || f[0].Code != http2.ErrCodeNo || r.abuses[0] != mesh.AbuseSlowBody {
			t.Errorf("%s: the client got %v, abuses %v", tt.name, f, r.abuses)
		}
		if f := r.app.Find(http2.FrameRSTStream, 1); len(f) != 1 {
			t.Errorf("%s: the server is left with half a request", tt.name)
		}
		if _, gone := r.goAway(t); gone {
			t.Errorf("%s: the connection went with it", tt.name)
		}
	}
}

// A link carries what the other proxy has judged already.
func TestSlowBodyOnALink(t *testing.T) {
	r := newRig(true)
	r.client.Headers(1, false, with(postReq, "content-length", "10")...)
	r.n.Advance(10 * time.Minute)
	if len(r.abuses) > 0 || r.h.Open != 1 {
		t.Errorf("abuses %v, open %d", r.abuses, r.h.Open)
	}
}

// TestHalfFrames: what has begun must come to its end, however it drips.
func TestHalfFrames(t *testing.T) {
	for _, tt := range []struct {
		name, in, drip string
		after          time.Duration
	}{
		{"header block", raw(1, 1, 3, 0x82), "", 20 * time.Second},
		{"dripping header block", raw(1, 1, 3, 0x82), raw(9, 0, 3), 20 * time.Second},
		{"PING", raw(6, 0, 0, make([]byte, 8)...)[:12], "", 20 * time.Second},
		{"frame header", raw(6, 0, 0)[:4], "", 20 * time.Second},
		{"dripping HEADERS", "\x00\x40\x00\x01\x05\x00\x00\x00\x03", "\x82", 20 * time.Second},
		{"dripping DATA", "\x00\x40\x00\x00\x00\x00\x00\x00\x01", "x", 70 * time.Second},
	} {
		r := newRig(false)
		r.client.Headers(1, false, postReq...)
		r.client.Send(tt.in)
		r.n.Run()
		age := time.Duration(0)
		for ; len(r.abuses) == 0 && age < 5*time.Minute; age += 2 * time.Second {
			r.client.Send(tt.drip)
			r.n.Run() // read before the end, which would be a reset
			r.n.Advance(2 * time.Second)
		}
		if age < tt.after/2 || age > tt.after {
			t.Errorf("%s: cut after %v, abuses %v", tt.name, age, r.abuses)
			continue
		}
		r.wantCalm(t, mesh.AbuseSlowHead)
	}
}

// A frame that is whole has no clock, and neither has a client that we keep waiting.
func TestWholeFramesHaveNoClock(t *testing.T) {
	r := newRig(false)
	r.down.Chunk = 7
	for i := range 100 {
		r.client.Headers(uint32(1+2*i), true, getReq...)
		r.n.Run()
		r.app.Headers(uint32(1+2*i), true, ":status", "200")
		r.n.Advance(3 * time.Second)
	}
	if _, gone := r.goAway(t); gone || len(r.abuses) > 0 || len(r.h.Log) != 100 {
		t.Errorf("gone %v, abuses %v, served %d", gone, r.abuses, len(r.h.Log))
	}
}
