package h2_test

import (
	"testing"

	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2"
)

// hoarding has a client ask for much and open no window; beside it, stream 101 is an exchange that goes on.
func hoarding(t *testing.T, internal bool) *rig {
	t.Helper()
	r := newRig(internal)
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for id := uint32(1); id <= 9; id += 2 {
		r.client.Headers(id, true, getReq...)
		r.n.Run()
		r.app.Headers(id, false, ":status", "200")
		for range 10 {
			r.app.Body(id, false, make([]byte, 10000))
		}
	}
	r.client.Headers(101, false, postReq...)
	r.n.Run()
	if got := r.sv.Held(); got < 500000 || got > 600000 || r.pool.Held() != got || r.sv.Taken() != 0 {
		t.Fatalf("held %d, by the pool's account %d, taken %d", got, r.pool.Held(), r.sv.Taken())
	}
	return r
}

func TestShed(t *testing.T) {
	r := hoarding(t, false)
	r.sv.Shed()
	if r.pool.Held() != 0 || r.sv.Held() > 100 {
		t.Errorf("held %d, by the pool's account %d", r.sv.Held(), r.pool.Held())
	}
	r.n.Run()
	r.wantCalm(t, mesh.AbuseUnread)
	if r.closed != 1 || len(r.h.Log) != 6 {
		t.Errorf("closed %d, ended %d", r.closed, len(r.h.Log))
	}
}

// A link is not ended for one of its streams.
func TestShedOfALink(t *testing.T) {
	r := hoarding(t, true)
	r.sv.Shed()
	r.n.Run()
	if _, gone := r.goAway(t); gone || r.pool.Held() != 0 || r.h.Open != 1 || len(r.abuses) != 1 {
		t.Errorf("gone %v, held %d, open %d, abuses %v", gone, r.pool.Held(), r.h.Open, r.abuses)
	}
	for id := uint32(1); id <= 9; id += 2 {
		if f := r.client.Find(http2.FrameRSTStream, id); len(f) != 1 || f[0].Code != http2.ErrCodeEnhanceYourCalm {
			t.Errorf("stream %d: %v", id, f)
		}
	}
	r.client.Body(101, true, []byte("x"))
	r.app.Headers(11, true, ":status", "200")
	r.n.Run()
	if r.client.Field(101, 0, ":status") != "200" {
		t.Error("the stream that held nothing is gone, too")
	}
}

// One that does not even read its farewell is not waited for.
func TestShedTwice(t *testing.T) {
	r := hoarding(t, false)
	r.client.C.Room = 0
	r.sv.Shed()
	r.sv.Shed()
	r.n.Run()
	if !r.down.IsRST || r.closed != 1 {
		t.Errorf("reset %v, closed %d", r.down.IsRST, r.closed)
	}
}
