package h2_test

import (
	"testing"

	"conduit.io/conduit/proxy/exchange/exchangetest"

	"golang.org/x/net/http2"
)

func data(h *exchangetest.H2, id uint32) int {
	b, _ := h.Bytes(id)
	return len(b)
}

// A smaller initial window takes back what streams were granted, below zero even; nothing is sent until updates have made
// up for it. A larger one lets them go on (RFC 9113, 6.9.2). Both codecs are senders.
func TestWindowShrinksBelowZero(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, postReq...)
	r.n.Run()
	r.app.Headers(1, false, ":status", "200")
	for range 4 { // both directions: 64 KB of the 65,535
		r.client.Body(1, false, make([]byte, 16_000))
		r.app.Body(1, false, make([]byte, 16_000))
	}
	r.n.Run()
	for name, end := range map[string]struct{ reader, writer *exchangetest.H2 }{
		"server": {r.client, r.app}, "client": {r.app, r.client},
	} {
		update := func(id, n uint32) {
			_ = end.reader.F.WriteWindowUpdate(id, n)
			end.reader.Flush()
			r.n.Run()
		}
		settings := func(v uint32) {
			end.reader.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: v})
			r.n.Run()
		}
		update(0, 1<<20)
		settings(1000) // the stream's window is now 1000 - 64000
		end.writer.Body(1, false, make([]byte, 5000))
		r.n.Run()
		update(1, 63_000) // 0
		if got := data(end.reader, 1); got != 64_000 {
			t.Errorf("%s: %d bytes were sent through a window of nothing", name, got-64_000)
		}
		update(1, 10)
		if got := data(end.reader, 1); got != 64_010 {
			t.Errorf("%s: %d bytes were sent through a window of 10", name, got-64_000)
		}
		settings(3000)
		if got := data(end.reader, 1); got != 66_010 {
			t.Errorf("%s: %d bytes were sent after the window grew by 2000", name, got-64_010)
		}
		settings(0)
		settings(65_535)
		if got := data(end.reader, 1); got != 69_000 {
			t.Errorf("%s: %d of 69000 bytes arrived", name, got)
		}
	}
	if _, gone := r.goAway(t); gone {
		t.Error("the connection is gone")
	}
	r.check(t)
}

// What SETTINGS allow is sent behind their acknowledgement, which comes at once, and only when all of them have been
// heeded: a window that was larger for the length of a frame has not been granted (RFC 9113, 6.5.3). Both codecs are senders.
func TestSettingsAreAcknowledgedFirst(t *testing.T) {
	const window = http2.SettingInitialWindowSize
	for name, ends := range map[string]func(r *rig) (reader, writer *exchangetest.H2){
		"server": func(r *rig) (_, _ *exchangetest.H2) { return r.client, r.app },
		"client": func(r *rig) (_, _ *exchangetest.H2) { return r.app, r.client },
	} {
		r := newRig(false)
		reader, writer := ends(r)
		// after sends settings and tells, by their types, what frames come back, and how long the stream's data are by then.
		after := func(s ...http2.Setting) (types string, n int) {
			at := len(reader.Frames)
			reader.Settings(s...)
			r.n.Run()
			for _, f := range reader.Frames[at:] {
				types += f.Type.String() + " "
			}
			return types, data(reader, 1)
		}
		after(http2.Setting{ID: window, Val: 0})
		r.client.Headers(1, writer == r.app, postReq...)
		r.n.Run()
		r.app.Headers(1, false, ":status", "200")
		writer.Body(1, false, make([]byte, 10))
		writer.Headers(1, true, "x-trailer", "1")
		r.n.Run()
		for _, c := range []struct {
			settings []http2.Setting
			types    string
			n        int
		}{
			{[]http2.Setting{{ID: window, Val: 1}}, "SETTINGS DATA ", 1},
			{[]http2.Setting{{ID: window, Val: 100}, {ID: window, Val: 3}}, "SETTINGS DATA ", 3},
			{[]http2.Setting{{ID: window, Val: 100}, {ID: window, Val: 0}}, "SETTINGS ", 3},
			{[]http2.Setting{{ID: window, Val: 100}, {ID: http2.SettingHeaderTableSize, Val: 0}}, "SETTINGS DATA HEADERS ", 10},
		} {
			if types, n := after(c.settings...); types != c.types || n != c.n {
				t.Errorf("%s: after %v came %swith %d bytes in all, want %swith %d", name, c.settings, types, n, c.types, c.n)
			}
		}
		r.check(t)
	}
}

// A window that a change would make too large ends the connection (RFC 9113, 6.9.2).
func TestWindowGrowsTooFar(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, postReq...)
	_ = r.client.F.WriteWindowUpdate(1, 1<<31-1-65_535)
	r.client.Flush()
	r.n.Run()
	if _, gone := r.goAway(t); gone {
		t.Fatal("the largest window is refused")
	}
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 65_536})
	r.n.Run()
	if code, _ := r.goAway(t); code != http2.ErrCodeFlowControl {
		t.Errorf("GOAWAY %v", code)
	}
}

// Fewer streams than there are: they all go on, and none is added before there are fewer (RFC 9113, 5.1.2).
func TestFewerStreamsAllowed(t *testing.T) {
	r := newRig(false)
	for id := uint32(1); id <= 7; id += 2 {
		r.client.Headers(id, true, getReq...)
	}
	r.n.Run()
	r.app.Settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 2})
	r.n.Run()
	if r.cl.Room() != 0 || r.h.Open != 4 {
		t.Fatalf("room for %d, %d open", r.cl.Room(), r.h.Open)
	}
	for i, want := range []int{0, 0, 1, 2} {
		r.app.Headers(uint32(1+2*i), true, ":status", "204")
		r.n.Run()
		if got := r.cl.Room(); got != want || r.h.Open != 3-i {
			t.Errorf("after stream %d: room for %d, want %d; %d open", 1+2*i, got, want, r.h.Open)
		}
	}
	if len(r.changes) == 0 || r.changes[0] {
		t.Error("nobody was told that there is room again")
	}
	r.app.Settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
	r.n.Run()
	if r.cl.Room() != 0 || r.app.Over() {
		t.Errorf("with no streams allowed: room for %d, over %v", r.cl.Room(), r.app.Over())
	}
	r.check(t)
}

// Larger frames may be sent, and need not be; smaller ones than 16 KiB cannot be asked for.
func TestFrameSize(t *testing.T) {
	r := newRig(false)
	r.client.Settings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1<<24 - 1}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	_ = r.client.F.WriteWindowUpdate(0, 1<<20)
	r.client.Headers(1, true, getReq...)
	r.n.Run()
	r.respond(1, 200_000)
	for _, f := range r.client.Find(http2.FrameData, 1) {
		if len(f.Data) > 16_384 {
			t.Errorf("a frame of %d bytes", len(f.Data))
		}
	}
	if got := data(r.client, 1); got != 200_000 {
		t.Errorf("%d bytes came", got)
	}
	for _, size := range []uint32{16_383, 1 << 24} {
		r := newRig(false)
		r.client.Settings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: size})
		r.n.Run()
		if code, _ := r.goAway(t); code != http2.ErrCodeProtocol {
			t.Errorf("%d: GOAWAY %v", size, code)
		}
	}
}
