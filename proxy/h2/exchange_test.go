package h2_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2"
)

func TestForward(t *testing.T) {
	for _, chunk := range []int{0, 1, 7} {
		r := newRig(false)
		r.down.Chunk, r.up.Chunk = chunk, chunk
		for i := range 6 { // repeated blocks come from the memo
			id := uint32(1 + 2*i)
			r.client.Headers(id, true, with(getReq, "conduit-client", "forged", "cookie", "a=1", "cookie", "b=2", "x-a", "1", "te", "trailers")...)
			r.n.Run()
			hs := r.app.Find(http2.FrameHeaders, id)
			want := ":method=GET;:scheme=http;:path=/;:authority=h;cookie=a=1;cookie=b=2;x-a=1;te=trailers;"
			if len(hs) != 1 || flat(hs[0]) != want || !hs[0].Flags.Has(http2.FlagHeadersEndStream) {
				t.Fatalf("chunk %d: app got %v", chunk, hs)
			}
			r.app.Headers(id, false, ":status", "200", "content-length", "5", "conduit-reason", "forged", "server", "s")
			r.app.Body(id, false, []byte("he"))
			r.app.Body(id, true, []byte("llo"))
			r.n.Run()
			b, end := r.client.Bytes(id)
			if got := flat(r.client.Find(http2.FrameHeaders, id)[0]); got != ":status=200;content-length=5;server=s;" || string(b) != "hello" || !end {
				t.Fatalf("chunk %d: client got %q %q %v", chunk, got, b, end)
			}
		}
		r.check(t)
		if r.h.Open != 0 || len(r.h.Log) != 6 || r.h.Log[5].ResBytes != 5 || r.h.Log[5].Reason != "" || r.cl.Active() != 0 || r.cl.Served() != 6 {
			t.Errorf("open %d, log %v, active %d", r.h.Open, r.h.Log, r.cl.Active())
		}
	}
}

func TestMemoGivesTheSameHead(t *testing.T) {
	r := newRig(false)
	var heads []*exchange.Head
	r.h.OnRequest = func(s *exchange.Stream) { heads = append(heads, s.Req); s.Respond(200, nil, nil) }
	for i := range 5 {
		r.client.Headers(uint32(1+2*i), true, getReq...)
		r.n.Run()
	}
	if heads[3] != heads[4] || heads[3] == heads[0] {
		t.Errorf("heads %p", heads)
	}
	r.client.Headers(11, true, with(getReq, "x-new", "1")...) // changes the table: the memo is void
	r.client.Headers(13, true, getReq...)
	r.n.Run()
	if heads[6] == heads[4] || heads[6].Authority != "h" || len(heads[6].Fields) != 0 || heads[5].Get("x-new") != "1" {
		t.Errorf("after a table change: %+v", heads[6])
	}
}

func TestGRPC(t *testing.T) {
	r := newRig(false)
	req := with(postReq, "content-type", "application/grpc", "te", "trailers")
	r.client.Headers(1, false, req...)
	for i := range 3 { // both directions at once
		r.client.Body(1, false, []byte{byte('a' + i)})
		r.n.Run()
		if i == 0 {
			r.app.Headers(1, false, ":status", "200", "content-type", "application/grpc")
		}
		r.app.Body(1, false, []byte{byte('A' + i)})
		r.n.Run()
	}
	r.client.Body(1, true, nil)
	r.n.Run()
	up, end := r.app.Bytes(1)
	r.app.Headers(1, true, "grpc-status", "0", "grpc-message", "fine")
	r.n.Run()
	down, dend := r.client.Bytes(1)
	if string(up) != "abc" || !end || string(down) != "ABC" || !dend || r.client.Field(1, 1, "grpc-message") != "fine" {
		t.Errorf("up %q %v, down %q %v", up, end, down, dend)
	}
	if tr := r.h.Log[0].Trailers; len(tr) != 2 || tr[0].Value != "0" {
		t.Errorf("trailers %v", tr)
	}
	r.client.Headers(3, true, req...) // trailers only
	r.n.Run()
	r.app.Headers(3, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "5")
	r.n.Run()
	if f := r.client.Find(http2.FrameHeaders, 3); len(f) != 1 || !f[0].Flags.Has(http2.FlagHeadersEndStream) || r.client.Field(3, 0, "grpc-status") != "5" {
		t.Errorf("trailers-only: %v", f)
	}
	r.check(t)
}

func TestFailures(t *testing.T) {
	for _, tt := range []struct {
		reason mesh.Reason
		grpc   string
	}{{mesh.ReasonConnect, "14"}, {mesh.ReasonOverload, "14"}, {mesh.ReasonTimeout, "4"}, {mesh.ReasonPeerIdentity, "14"}, {mesh.ReasonConnectTimeout, "14"}, {mesh.ReasonPlaintext, "7"}, {mesh.ReasonUpstreamProto, "13"}} {
		r := newRig(false)
		r.h.OnRequest = func(s *exchange.Stream) { s.Fail(503, tt.reason, "50% \"broken\"") }
		r.client.Headers(1, false, with(postReq, "content-type", "application/grpc+proto")...)
		r.client.Headers(3, true, getReq...)
		r.n.Run()
		f := r.client.Find(http2.FrameHeaders, 1)
		if len(f) != 1 || !f[0].Flags.Has(http2.FlagHeadersEndStream) || r.client.Field(1, 0, ":status") != "200" ||
			r.client.Field(1, 0, "grpc-status") != tt.grpc || r.client.Field(1, 0, "grpc-message") != "50%25 \"broken\"" ||
			r.client.Field(1, 0, "conduit-reason") != string(tt.reason) {
			t.Errorf("%s: %v", tt.reason, f)
		}
		if rst := r.client.Find(http2.FrameRSTStream, 1); len(rst) != 1 || rst[0].Code != 0 { // the upload is stopped without blame
			t.Errorf("%s: %v", tt.reason, rst)
		}
		b, end := r.client.Bytes(3)
		if r.client.Field(3, 0, ":status") != "503" || string(b) != "50% \"broken\"\n" || r.client.Field(3, 0, "content-length") != "13" || !end || r.client.Field(3, 0, "conduit-reason") != string(tt.reason) {
			t.Errorf("%s: %q", tt.reason, b)
		}
		r.check(t)
	}
}

func TestResetsArePassedOn(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, postReq...)
	r.n.Run()
	_ = r.client.F.WriteRSTStream(1, http2.ErrCodeCancel)
	r.client.Flush()
	r.n.Run()
	if f := r.app.Find(http2.FrameRSTStream, 1); len(f) != 1 || f[0].Code != http2.ErrCodeCancel || r.h.Log[0].Reason != mesh.ReasonDownstreamReset {
		t.Errorf("app got %v, log %v", f, r.h.Log)
	}
	for i, head := range []bool{false, true} {
		id := uint32(3 + 2*i)
		r.client.Headers(id, true, getReq...)
		r.n.Run()
		if head {
			r.app.Headers(id, false, ":status", "200")
		}
		_ = r.app.F.WriteRSTStream(id, http2.ErrCodeEnhanceYourCalm)
		r.app.Flush()
		r.n.Run()
		if f := r.client.Find(http2.FrameRSTStream, id); len(f) != 1 || f[0].Code != http2.ErrCodeEnhanceYourCalm {
			t.Errorf("client got %v", f)
		}
		if r.h.Log[1+i].Reason != mesh.ReasonUpstreamReset {
			t.Errorf("log %v", r.h.Log)
		}
	}
	r.client.Headers(7, true, getReq...)
	r.n.Run()
	r.app.C.Abort()
	r.n.Run()
	if r.client.Field(7, 0, ":status") != "502" || r.h.Open != 0 || len(r.changes) != 1 || !r.changes[0] {
		t.Errorf("log %v, changes %v", r.h.Log, r.changes)
	}
	r.check(t)
}

func TestGoAwayIsRetried(t *testing.T) {
	r := newRig(false)
	cl2, _, app2 := r.newClient(false, func(bool) {})
	app2.Settings()
	var unprocessed []bool
	r.h.OnLost = func(s *exchange.Stream, _ mesh.Reason) bool {
		unprocessed = append(unprocessed, s.Unprocessed)
		s.Forward(cl2, nil)
		return true
	}
	r.client.Headers(1, false, postReq...)
	r.client.Headers(3, false, postReq...)
	r.client.Headers(5, false, postReq...)
	r.client.Body(3, false, []byte("part"))
	r.client.Body(5, false, []byte("other"))
	r.n.Run()
	_ = r.app.F.WriteGoAway(1, http2.ErrCodeNo, nil)
	_ = r.app.F.WriteRSTStream(1, http2.ErrCodeRefusedStream)
	r.app.Flush()
	r.client.Body(3, true, []byte("-end"))
	r.n.Run()
	if fmt.Sprint(unprocessed) != "[true true true]" || len(app2.Find(http2.FrameHeaders, 5)) != 1 {
		t.Fatalf("unprocessed %v", unprocessed)
	}
	got := map[string]bool{}
	for id := uint32(1); id < 7; id += 2 {
		b, end := app2.Bytes(id)
		got[fmt.Sprint(string(b), end)] = true
	}
	if !got["part-endtrue"] || !got["otherfalse"] || !got["false"] {
		t.Errorf("the second server got %v", got)
	}
	if r.cl.Room() != 0 || !r.app.Over() {
		t.Error("the first connection goes on")
	}
	r.check(t)
}

func TestEarlyResponse(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, postReq...)
	r.client.Body(1, false, make([]byte, 1000))
	r.n.Run()
	r.app.Headers(1, true, ":status", "413")
	r.n.Run()
	if f := r.client.Find(http2.FrameRSTStream, 1); len(f) != 1 || f[0].Code != 0 || r.client.Field(1, 0, ":status") != "413" {
		t.Errorf("client got %v", f)
	}
	if f := r.app.Find(http2.FrameRSTStream, 1); len(f) != 1 {
		t.Errorf("app got %v", f)
	}
	r.client.Body(1, false, make([]byte, 1000)) // was in flight
	r.client.Headers(3, true, getReq...)
	r.n.Run()
	if _, bad := r.goAway(t); bad || len(r.app.Find(http2.FrameHeaders, 3)) != 1 || len(r.client.Find(http2.FrameRSTStream, 1)) != 1 {
		t.Error("late DATA hurt")
	}
}

func TestInterim(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, true, getReq...)
	r.n.Run()
	r.app.Headers(1, false, ":status", "103", "link", "a")
	r.app.Headers(1, true, ":status", "204")
	r.n.Run()
	if r.client.Field(1, 0, "link") != "a" || r.client.Field(1, 1, ":status") != "204" {
		t.Errorf("got %v", r.client.Find(http2.FrameHeaders, 1))
	}
}

func TestConnectTunnel(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, ":method", "CONNECT", ":authority", "10.0.0.1:5432")
	r.client.Body(1, false, []byte("first"))
	r.n.Run()
	if b, _ := r.app.Bytes(1); string(b) != "first" {
		t.Errorf("the tunnel waits for the answer: %q", b)
	}
	r.app.Headers(1, false, ":status", "200")
	r.app.Body(1, true, []byte("reply"))
	r.n.Run()
	if b, end := r.client.Bytes(1); string(b) != "reply" || !end || r.h.Open != 1 {
		t.Errorf("got %q %v, open %d", b, end, r.h.Open)
	}
	r.client.Body(1, false, []byte("-more"))
	r.client.Body(1, true, nil)
	r.n.Run()
	if b, end := r.app.Bytes(1); string(b) != "first-more" || !end || r.h.Open != 0 || r.h.Log[0].Reason != "" {
		t.Errorf("after half-close: %q %v, log %v", b, end, r.h.Log)
	}
	if len(r.app.Find(http2.FrameRSTStream, 1))+len(r.client.Find(http2.FrameRSTStream, 1)) != 0 {
		t.Error("an orderly tunnel was reset")
	}
}

func TestFlowControl(t *testing.T) {
	r := newRig(false)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
	r.client.Headers(1, true, getReq...)
	r.client.Headers(3, true, getReq...)
	r.n.Run()
	r.app.Headers(1, false, ":status", "200")
	r.app.Headers(3, false, ":status", "200")
	// The client grants 65535 for the stream and the connection; the server may send 256 KiB.
	sent := 0
	window := 256 << 10
	seen := 0
	pump := func() {
		for _, f := range r.app.Find(http2.FrameWindowUpdate, 1)[seen:] {
			seen++
			window += int(f.Inc)
		}
		for sent < len(body) && window > 0 {
			k := min(16384, window, len(body)-sent)
			r.app.Body(1, sent+k == len(body), body[sent:sent+k])
			sent += k
			window -= k
		}
	}
	pump()
	r.n.Run()
	b, _ := r.client.Bytes(1)
	if len(b) != 65535 || sent != 256<<10 {
		t.Fatalf("client got %d, server sent %d", len(b), sent)
	}
	r.app.Body(3, true, nil)
	r.n.Run()
	if _, end := r.client.Bytes(3); !end {
		t.Error("a blocked stream blocks another")
	}
	for range 100 {
		_ = r.client.F.WriteWindowUpdate(0, 40000)
		_ = r.client.F.WriteWindowUpdate(1, 40000)
		r.client.Flush()
		r.n.Run()
		pump()
		r.n.Run()
	}
	b, end := r.client.Bytes(1)
	if !bytes.Equal(b, body) || !end {
		t.Errorf("got %d of %d, end %v", len(b), len(body), end)
	}
	r.check(t)
}

func TestStoppedReaderStopsServer(t *testing.T) {
	r := newRig(false)
	r.client.Settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	_ = r.client.F.WriteWindowUpdate(0, 1<<30)
	r.client.Headers(1, true, getReq...)
	r.client.Flush()
	r.n.Run()
	r.client.C.Room = 16 << 10
	r.client.C.Pause()
	r.app.Headers(1, false, ":status", "200")
	for range 16 {
		r.app.Body(1, false, make([]byte, 16<<10))
		r.n.Run()
	}
	if r.down.PeakBacklog > flow.HighWater+32<<10 {
		t.Errorf("backlog %d", r.down.PeakBacklog)
	}
	var credit int
	for _, f := range r.app.Find(http2.FrameWindowUpdate, 1) {
		credit += int(f.Inc)
	}
	if credit > 128<<10 {
		t.Errorf("%d bytes were credited", credit)
	}
	r.client.C.Resume()
	r.n.Run()
	if b, _ := r.client.Bytes(1); len(b) != 256<<10 {
		t.Errorf("got %d", len(b))
	}
}

func TestConcurrencyLimits(t *testing.T) {
	r := newRig(false)
	r.app.Settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 2})
	r.n.Run()
	waiting := []*exchange.Stream{}
	r.h.OnRequest = func(s *exchange.Stream) {
		if r.cl.Room() == 0 {
			waiting = append(waiting, s)
			return
		}
		s.Forward(r.cl, nil)
	}
	for i := range 4 {
		r.client.Headers(uint32(1+2*i), true, getReq...)
	}
	r.n.Run()
	if r.cl.Active() != 2 || len(waiting) != 2 {
		t.Fatalf("active %d, waiting %d", r.cl.Active(), len(waiting))
	}
	r.app.Headers(1, true, ":status", "200")
	r.n.Run()
	if len(r.changes) != 1 || r.changes[0] || r.cl.Room() != 1 {
		t.Errorf("changes %v", r.changes)
	}
	r = newRig(false)
	r.h.OnRequest = func(*exchange.Stream) {}
	for i := range 1001 {
		r.client.Headers(uint32(1+2*i), true, getReq...)
	}
	r.n.Run()
	if f := r.client.Find(http2.FrameRSTStream, 2001); len(f) != 1 || f[0].Code != http2.ErrCodeRefusedStream || r.h.Open != 1000 {
		t.Errorf("open %d, %v", r.h.Open, f)
	}
}

func TestServerDrain(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, true, getReq...)
	r.n.Run()
	r.sv.Drain()
	r.n.Run()
	f := r.client.Find(http2.FrameGoAway, 0)
	if len(f) != 1 || f[0].Last != 1<<31-1 || f[0].Code != 0 {
		t.Fatalf("first GOAWAY %v", f)
	}
	r.client.Headers(3, true, getReq...) // was on its way
	r.n.Run()
	r.n.Advance(time.Second)
	f = r.client.Find(http2.FrameGoAway, 0)
	if len(f) != 2 || f[1].Last != 3 || r.client.Over() {
		t.Fatalf("second GOAWAY %v", f)
	}
	r.client.Headers(5, true, getReq...)
	r.app.Headers(1, true, ":status", "200")
	r.app.Headers(3, true, ":status", "200")
	r.n.Run()
	if rst := r.client.Find(http2.FrameRSTStream, 5); len(rst) != 1 || rst[0].Code != http2.ErrCodeRefusedStream ||
		r.client.Field(3, 0, ":status") != "200" || !r.client.Over() || r.closed != 1 {
		t.Errorf("rst %v, over %v, closed %d", rst, r.client.Over(), r.closed)
	}
}

// A connection that is to begin nothing more says so at once: what has not come yet is refused, and may be sent again.
func TestServerQuit(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, true, getReq...)
	r.n.Run()
	r.sv.Quit()
	r.client.Headers(3, true, getReq...)
	r.n.Run()
	f := r.client.Find(http2.FrameGoAway, 0)
	rst := r.client.Find(http2.FrameRSTStream, 3)
	if len(f) != 2 || f[1].Last != 1 || len(rst) != 1 || rst[0].Code != http2.ErrCodeRefusedStream || r.client.Over() {
		t.Errorf("GOAWAY %v, RST %v, over %v", f, rst, r.client.Over())
	}
	r.app.Headers(1, true, ":status", "200")
	r.n.Run()
	if r.client.Field(1, 0, ":status") != "200" || !r.client.Over() || r.closed != 1 {
		t.Errorf("%v, over %v, closed %d", r.client.Frames, r.client.Over(), r.closed)
	}
	r = newRig(false)
	r.sv.Quit()
	r.n.Run()
	if !r.client.Over() || r.closed != 1 {
		t.Error("an idle connection stays")
	}
}

func TestPadding(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, postReq...)
	for range 300 {
		_ = r.client.F.WriteDataPadded(1, false, []byte("x"), make([]byte, 255))
	}
	r.client.Flush()
	r.n.Run()
	if b, _ := r.app.Bytes(1); len(b) != 300 {
		t.Errorf("app got %d", len(b))
	}
	if len(r.client.Find(http2.FrameWindowUpdate, 1)) == 0 {
		t.Error("padding is not credited")
	}
	if !strings.Contains(fmt.Sprint(r.h.Open), "1") {
		t.Error("stream is gone")
	}
}
