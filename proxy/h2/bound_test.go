package h2_test

import (
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestClientThatNeverReads(t *testing.T) {
	r := newRig(false)
	r.client.C.Room, r.down.Room, r.down.Chunk = 4<<10, 64<<10, 16<<10
	r.client.C.Pause()
	big := strings.Repeat("x", 2000)
	r.h.OnRequest = func(s *exchange.Stream) {
		s.Respond(200, []hpack.HeaderField{{Name: "traceparent", Value: big}}, nil)
	}
	const count = 5000
	for i := range count {
		r.client.Headers(uint32(1+2*i), true, getReq...)
	}
	r.n.Run()
	if r.down.PeakBacklog > 1<<20 || !r.down.Paused || len(r.h.Log) > 1000 {
		t.Fatalf("backlog %d, paused %v, answered %d", r.down.PeakBacklog, r.down.Paused, len(r.h.Log))
	}
	r.client.C.Resume()
	r.n.Run()
	if len(r.h.Log) != count {
		t.Errorf("answered %d", len(r.h.Log))
	}
	r.check(t)
}

func TestServerThatNeverReads(t *testing.T) {
	r := newRig(true)
	r.app.C.Room = 4 << 10
	r.app.C.Pause()
	refused := 0
	r.h.OnRequest = func(s *exchange.Stream) {
		if r.cl.Room() == 0 {
			refused++
			s.Fail(503, mesh.ReasonOverload, "busy")
			return
		}
		s.Forward(r.cl, nil)
	}
	for i := range 2000 {
		id := uint32(1 + 2*i)
		r.client.Headers(id, true, with(getReq, "traceparent", strings.Repeat("x", 1000))...)
		_ = r.client.F.WriteRSTStream(id, http2.ErrCodeCancel)
		r.client.Flush()
	}
	r.n.Run()
	if r.up.PeakBacklog > 600<<10 || refused == 0 {
		t.Errorf("backlog %d, refused %d", r.up.PeakBacklog, refused)
	}
	r.app.C.Resume()
	r.n.Run()
	if r.cl.Room() == 0 || len(r.changes) == 0 || r.changes[0] {
		t.Errorf("after reading on: room %d, changes %v", r.cl.Room(), r.changes)
	}
}

func TestConnectionWindowIsShared(t *testing.T) {
	r := newRig(false)
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	for id := uint32(1); id < 7; id += 2 {
		r.client.Headers(id, true, getReq...)
	}
	r.n.Run()
	total := func() (n int) {
		for id := uint32(1); id < 7; id += 2 {
			b, _ := r.client.Bytes(id)
			n += len(b)
		}
		return n
	}
	for id := uint32(1); id < 7; id += 2 {
		r.app.Headers(id, false, ":status", "200")
		r.app.Body(id, false, make([]byte, 16384))
		r.app.Body(id, false, make([]byte, 16384))
		r.app.Body(id, true, make([]byte, 16384))
	}
	r.n.Run()
	if total() != 65535 {
		t.Fatalf("client got %d through a window of 65535", total())
	}
	for range 10 {
		_ = r.client.F.WriteWindowUpdate(0, 10000)
		r.client.Flush()
		r.n.Run()
	}
	if total() != 9*16384 || r.h.Open != 0 {
		t.Errorf("client got %d, open %d", total(), r.h.Open)
	}
}

func TestLengthAndTrailers(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, with(postReq, "content-length", "5")...)
	r.client.Body(1, false, []byte("four"))
	r.client.Headers(1, true, "x-t", "1")
	r.n.Run()
	if f := r.client.Find(http2.FrameRSTStream, 1); len(f) != 1 || f[0].Code != http2.ErrCodeProtocol {
		t.Errorf("a short body with trailers: %v", f)
	}
	if _, end := r.app.Bytes(1); end {
		t.Error("it went through")
	}
}

func TestTableSizeUpdateBeforeLiteral(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, true, with(postReq, "content-type", "application/grpc")...)
	r.n.Run()
	r.app.Headers(1, false, ":status", "200", "content-type", "application/grpc")
	r.n.Run()
	r.client.F.ReadMetaHeaders.SetAllowedMaxDynamicTableSize(100)
	r.client.Settings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 100})
	r.n.Run()
	r.app.Headers(1, true, "grpc-message", "m", "grpc-status", "0") // the first field is one that is never indexed
	r.n.Run()
	if r.client.Field(1, 1, "grpc-message") != "m" || len(r.client.Errs) > 0 {
		t.Errorf("trailers: %v %v", r.client.Find(http2.FrameHeaders, 1), r.client.Errs)
	}
}

func TestReplayIsCreditedOnce(t *testing.T) {
	r := newRig(false)
	cl := r.cl
	r.h.OnLost = func(s *exchange.Stream, _ mesh.Reason) bool {
		s.Forward(cl, nil)
		return true
	}
	_ = r.app.F.WriteWindowUpdate(0, 1<<20)
	r.app.Flush()
	r.client.Headers(1, false, postReq...)
	r.client.Body(1, false, make([]byte, 4000))
	r.n.Run()
	for i := range 40 {
		_ = r.app.F.WriteRSTStream(uint32(1+2*i), http2.ErrCodeRefusedStream)
		r.app.Flush()
		r.n.Run()
	}
	if b, _ := r.app.Bytes(81); len(b) != 4000 {
		t.Fatalf("sent again: %d", len(b))
	}
	if f := r.client.Find(http2.FrameWindowUpdate, 1); len(f) != 0 {
		t.Errorf("4000 bytes were credited with %v", f)
	}
}

func TestConnectionEnds(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"client FIN":    func(r *rig) { r.client.C.CloseWrite() },
		"client RST":    func(r *rig) { r.client.C.Abort() },
		"server FIN":    func(r *rig) { r.app.C.CloseWrite() },
		"server RST":    func(r *rig) { r.app.C.Abort() },
		"client codec":  func(r *rig) { r.cl.Close() },
		"server GOAWAY": func(r *rig) { _ = r.app.F.WriteGoAway(0, http2.ErrCodeInternal, nil); r.app.Flush() },
	} {
		r := newRig(false)
		r.client.Headers(1, false, postReq...)
		r.client.Headers(3, true, getReq...)
		r.n.Run()
		r.app.Headers(3, false, ":status", "200")
		r.n.Run()
		end(r)
		r.n.Run()
		if r.h.Open != 0 || len(r.h.Log) != 2 || r.h.Log[0].Reason == "" || r.h.Log[1].Reason == "" {
			t.Errorf("%s: open %d, log %v", name, r.h.Open, r.h.Log)
		}
		if server := strings.HasPrefix(name, "client ") && name != "client codec"; server && r.closed != 1 || !server && r.cl.Room() != 0 {
			t.Errorf("%s: closed %d, room %d", name, r.closed, r.cl.Room())
		}
	}
}

func TestClientGoAway(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, true, getReq...)
	r.n.Run()
	_ = r.client.F.WriteGoAway(0, http2.ErrCodeNo, nil)
	r.client.Flush()
	r.n.Run()
	r.app.Headers(1, true, ":status", "200")
	r.n.Run()
	r.n.Advance(2 * time.Second)
	if r.client.Field(1, 0, ":status") != "200" || !r.client.Over() || r.closed != 1 {
		t.Errorf("the last stream was not served: %v, over %v", r.client.Frames, r.client.Over())
	}
}

// What waits is bounded, complete responses included: a connection takes no new streams while much waits, and in the end
// its window holds the server back. What waits survives the end of the connection.
func TestWindowsBoundWhatIsQueued(t *testing.T) {
	r := newRig(false)
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	const size = 200 << 10
	window, sent := r.connWindow(0), 0
	for id := uint32(1); r.cl.Room() > 0 && id < 1000; id += 2 {
		r.client.Headers(id, true, getReq...)
		r.n.Run()
		r.respond(id, size)
		sent += size
	}
	if sent < 2*window || sent > 3*window || r.connWindow(sent) < window/2 {
		t.Errorf("no room after %d bytes; the connection has a window of %d left", sent, r.connWindow(sent))
	}
	parked := r.pool.Parked()
	if parked < sent/2 {
		t.Errorf("%d bytes are parked", parked)
	}
	r.app.C.Close()
	r.n.Run()
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
	_ = r.client.F.WriteWindowUpdate(0, 1<<30)
	r.client.Flush()
	r.n.Run()
	if b, end := r.client.Bytes(1); len(b) != size || !end || r.h.Open != 0 || r.h.Log[0].Reason != "" {
		t.Errorf("got %d, end %v, open %d, log %v", len(b), end, r.h.Open, r.h.Log[0])
	}
	if r.pool.Parked() != 0 {
		t.Errorf("%d bytes are parked for ever", r.pool.Parked())
	}
}
