package h2_test

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wantCalm checks that the client was told to calm down, for kind.
func (r *rig) wantCalm(t *testing.T, kind mesh.Abuse) {
	t.Helper()
	code, gone := r.goAway(t)
	if !gone || code != http2.ErrCodeEnhanceYourCalm || len(r.abuses) != 1 || r.abuses[0] != kind || r.h.Open != 0 {
		t.Errorf("GOAWAY %v %v, abuses %q, open %d; want %q", gone, code, r.abuses, r.h.Open, kind)
	}
}

// update is a WINDOW_UPDATE frame.
func update(id uint32, inc byte) string { return raw(8, 0, id, 0, 0, 0, inc) }

func TestWindowUpdateFlood(t *testing.T) {
	for name, id := range map[string]uint32{"connection": 0, "stream": 1} {
		r := newRig(false)
		r.client.Headers(1, false, postReq...)
		r.client.Send(strings.Repeat(update(id, 100), 10001))
		r.n.Run()
		if _, gone := r.goAway(t); !gone {
			t.Errorf("%s: no GOAWAY", name)
			continue
		}
		r.wantCalm(t, mesh.AbuseWindow)
	}
}

// A receiver may acknowledge every DATA frame at once, for its stream and for the connection.
func TestEagerReceiver(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, true, getReq...)
	r.n.Run()
	r.app.Headers(1, false, ":status", "200")
	for range 12000 {
		r.app.Body(1, false, []byte("x"))
		r.n.Run()
		r.client.Send(update(1, 1) + update(0, 1))
		r.n.Run()
	}
	if code, gone := r.goAway(t); gone {
		t.Errorf("GOAWAY %v, abuses %v", code, r.abuses)
	}
	if b, _ := r.client.Bytes(1); len(b) != 12000 {
		t.Errorf("got %d bytes", len(b))
	}
}

func TestTinyWindows(t *testing.T) {
	for name, id := range map[string]uint32{"connection": 0, "stream": 1} {
		r := newRig(false)
		window := uint32(1 << 20)
		if id > 0 {
			window = 0
		}
		r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
		r.client.Headers(1, true, getReq...)
		r.n.Run()
		r.app.Headers(1, false, ":status", "200")
		for range 10 {
			r.app.Body(1, false, make([]byte, 10000))
		}
		r.n.Run()
		for range 1001 {
			r.client.Send(update(id, 1))
			r.n.Run()
		}
		if _, gone := r.goAway(t); !gone {
			t.Errorf("%s: no GOAWAY", name)
			continue
		}
		r.wantCalm(t, mesh.AbuseTinyWindow)
	}
}

// Many settings in one frame cost as much as in many.
func TestSettingsInOneFrame(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, postReq...)
	r.client.Send(raw(4, 0, 0, []byte(strings.Repeat("\x00\x04\x00\x00\x00\x00\x00\x04\x00\x00\x00\x01", 1000))...))
	r.n.Run()
	r.wantCalm(t, mesh.AbuseSettings)
}

func TestServerSendsGoAwayFlood(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, true, getReq...)
	r.n.Run()
	r.app.Send(strings.Repeat(raw(7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0), 200))
	r.n.Run()
	if !r.app.Over() || len(r.abuses) != 1 || r.abuses[0] != mesh.AbuseSettings || len(r.h.Log) != 1 || r.h.Log[0].Reason != mesh.ReasonUpstreamProto {
		t.Errorf("over %v, abuses %v, log %v", r.app.Over(), r.abuses, r.h.Log)
	}
}

// stuck opens n streams whose responses wait for the connection's window, which the client never opens.
func stuck(t *testing.T, n int) *rig {
	t.Helper()
	r := newRig(false)
	r.app.Settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000})
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	for i := range n {
		id := uint32(1 + 2*i)
		r.client.Headers(id, true, getReq...)
		r.n.Run()
		r.app.Headers(id, false, ":status", "200")
		r.app.Body(id, false, make([]byte, 2000))
	}
	r.n.Run()
	return r
}

// What one WINDOW_UPDATE costs does not depend on how many streams wait for it.
func TestWaitingStreamsCostNothing(t *testing.T) {
	r := stuck(t, 900)
	if w := r.sv.Waiting(); w < 800 {
		t.Fatalf("%d streams wait", w)
	}
	frame := []byte(update(0, 16))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const count = 500
	for range count {
		r.sv.Data(frame)
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / count; n > 1000 {
		t.Errorf("a WINDOW_UPDATE of 16 bytes takes %d bytes of memory", n)
	}
}

// Streams that end while they wait for the connection's window leave nothing behind.
func TestWaitingStreamsAreForgotten(t *testing.T) {
	r := stuck(t, 40)
	for i := range 3000 {
		id := uint32(81 + 2*i)
		r.client.Headers(id, true, getReq...)
		r.n.Run()
		r.app.Headers(id, false, ":status", "200")
		r.app.Body(id, false, make([]byte, 10))
		r.n.Run()
		r.client.Send(raw(3, 0, id, 0, 0, 0, 8))
		r.n.Advance(5 * time.Millisecond)
	}
	if code, gone := r.goAway(t); gone || r.sv.Waiting() > 300 {
		t.Errorf("%d wait, GOAWAY %v %v", r.sv.Waiting(), gone, code)
	}
}

// A client that does not even read that it is to calm down is not waited for, with all that is queued for it.
func TestUnreadAnswersAreDropped(t *testing.T) {
	r := newRig(false)
	r.client.C.Room, r.down.Room = 4<<10, 1<<20
	r.client.C.Pause()
	for range 30 {
		r.client.Send(strings.Repeat(raw(6, 0, 0, make([]byte, 8)...), 5000))
		r.n.Advance(time.Second)
	}
	if r.down.PeakBacklog > 1<<20 || !r.down.Paused {
		t.Fatalf("backlog %d, paused %v", r.down.PeakBacklog, r.down.Paused)
	}
	r = newRig(false)
	r.client.C.Room = 4 << 10
	r.client.C.Pause()
	for range 2 {
		r.client.Send(strings.Repeat(raw(6, 0, 0, make([]byte, 8)...), 9000))
		r.n.Run()
		r.n.Advance(2 * time.Second)
	}
	r.client.Send(raw(6, 0, 1))
	r.n.Run()
	if !r.down.IsRST || r.closed != 1 {
		t.Errorf("reset %v, closed %d, backlog %d", r.down.IsRST, r.closed, r.down.Backlog())
	}
}

// A connection has its share of a turn, whatever its frames are; nothing is lost or disordered by it.
func TestTurnsAreShared(t *testing.T) {
	for name, in := range map[string]string{
		"PING": strings.Repeat(raw(6, 0, 0, make([]byte, 8)...), 3000), "PRIORITY": strings.Repeat(raw(2, 0, 1, 0, 0, 0, 0, 0), 3000),
		"DATA": strings.Repeat(raw(0, 0, 1, 'x'), 3000),
	} {
		r := newRig(false)
		r.client.Headers(1, false, postReq...)
		r.n.Run()
		r.sv.Data([]byte(in))
		if !r.down.Paused || r.sv.Kept() < len(in)/4 || r.sv.Kept() > len(in)*3/4 {
			t.Errorf("%s: after one turn %d of %d bytes are left, paused %v", name, r.sv.Kept(), len(in), r.down.Paused)
		}
		r.n.Run()
		if b, _ := r.app.Bytes(1); r.down.Paused || r.sv.Kept() != 0 || name == "DATA" && len(b) != 3000 {
			t.Errorf("%s: in the end %d bytes are left, paused %v; the server got %d", name, r.sv.Kept(), r.down.Paused, len(b))
		}
	}
}

func TestManyRequestsInOneTurn(t *testing.T) {
	r := newRig(false)
	for i := range 900 {
		r.client.Headers(uint32(1+2*i), true, getReq...)
	}
	served := 0
	r.h.OnRequest = func(s *exchange.Stream) {
		served++
		s.Respond(200, []hpack.HeaderField{{Name: "x", Value: "y"}}, nil)
	}
	r.down.Chunk = 1 << 20
	for served == 0 {
		r.n.Step()
	}
	if served > 128 {
		t.Errorf("%d requests in one turn", served)
	}
	r.n.Run()
	if served != 900 || len(r.client.Errs) != 0 {
		t.Errorf("served %d, errors %v", served, r.client.Errs)
	}
}
