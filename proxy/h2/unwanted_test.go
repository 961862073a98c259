package h2_test

import (
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A response that must not be forwarded is an answer of the mesh's, with its reason; nobody but the server broke anything.
func TestMalformedResponseIsAnswered(t *testing.T) {
	huge := make([]string, 0, 600)
	for range 300 {
		huge = append(huge, "x-a", strings.Repeat("y", 500))
	}
	for name, tt := range map[string]struct {
		res    []string
		reason mesh.Reason
	}{
		"malformed": {[]string{":status", "200", "connection", "x"}, mesh.ReasonUpstreamProto},
		"too large": {append([]string{":status", "200"}, huge...), mesh.ReasonTooLarge},
	} {
		r := newRig(false)
		r.client.Headers(1, true, getReq...)
		r.client.Headers(3, true, with(postReq, "content-type", "application/grpc")...)
		r.n.Run()
		for _, id := range []uint32{1, 3} {
			r.app.Headers(id, false, tt.res...)
			r.n.Run()
			if f := r.app.Find(http2.FrameRSTStream, id); len(f) != 1 || f[0].Code != http2.ErrCodeProtocol {
				t.Errorf("%s: the server got %v", name, f)
			}
			if got := r.client.Field(id, 0, "conduit-reason"); got != string(tt.reason) || len(r.client.Find(http2.FrameRSTStream, id)) != 0 {
				t.Errorf("%s: the client got reason %q and %v", name, got, r.client.Find(http2.FrameRSTStream, id))
			}
		}
		if r.client.Field(1, 0, ":status") != "502" || r.client.Field(3, 0, "grpc-status") != "13" {
			t.Errorf("%s: status %q, grpc-status %q", name, r.client.Field(1, 0, ":status"), r.client.Field(3, 0, "grpc-status"))
		}
	}
}

// What a client does wrong on a stream is not the server's fault.
func TestClientErrorIsCancelledUpstream(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, with(postReq, "content-length", "1")...)
	r.n.Run()
	r.client.Body(1, true, []byte("too long"))
	r.n.Run()
	if f := r.app.Find(http2.FrameRSTStream, 1); len(f) != 1 || f[0].Code != http2.ErrCodeCancel {
		t.Errorf("the server got %v", f)
	}
	if len(r.h.Log) != 1 || r.h.Log[0].Reason != mesh.ReasonBadRequest {
		t.Errorf("log %v", r.h.Log)
	}
}

// A request that the server has not processed, and that can be sent again by the client alone, is refused: then the client
// knows that it may (RFC 9113, 8.7).
func TestUnprocessedIsRefused(t *testing.T) {
	r := newRig(false)
	r.client.Headers(1, false, postReq...)
	r.client.Body(1, false, make([]byte, 10_000)) // more than is kept
	r.n.Run()
	_ = r.app.F.WriteGoAway(0, http2.ErrCodeNo, nil)
	r.app.Flush()
	r.n.Run()
	if f := r.client.Find(http2.FrameRSTStream, 1); len(f) != 1 || f[0].Code != http2.ErrCodeRefusedStream {
		t.Errorf("the client got %v and %v", f, r.client.Find(http2.FrameHeaders, 1))
	}
}

// A head over the limits is answered with 431 whatever its size, as long as its blocks come in few frames; the tables stay
// in step, and the connection goes on.
func TestHugeHead(t *testing.T) {
	r := newRig(false)
	fields := with(getReq, "x-kept", "1")
	for i := range 4 {
		fields = append(fields, "x-big", strings.Repeat(string('a'+rune(i)), 60_000))
	}
	block := append([]byte(nil), r.client.Block(append(fields, "x-last", "2")...)...)
	if len(block) < 2*64<<10 {
		t.Fatalf("the block has only %d bytes", len(block))
	}
	const step = 16384
	_ = r.client.F.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:step], EndStream: true})
	for block = block[step:]; len(block) > 0; block = block[min(step, len(block)):] {
		_ = r.client.F.WriteContinuation(1, len(block) <= step, block[:min(step, len(block))])
	}
	r.client.Flush()
	r.client.Headers(3, true, with(getReq, "x-kept", "1", "x-last", "2")...) // indexed: the table must have both
	r.n.Run()
	if r.client.Field(1, 0, ":status") != "431" || r.client.Field(1, 0, "conduit-reason") != string(mesh.ReasonTooLarge) {
		t.Errorf("got %v", r.client.Frames)
	}
	if f := r.app.Find(http2.FrameHeaders, 1); len(f) != 1 || !strings.HasSuffix(flat(f[0]), "x-kept=1;x-last=2;") {
		t.Errorf("the next request became %v", f)
	}
	r.check(t)
}

// A field that may never be indexed stays so on the next hop (RFC 7541, 6.2.3).
func TestSensitiveFieldStaysSo(t *testing.T) {
	r := newRig(false)
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(getReq); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: getReq[i], Value: getReq[i+1]})
	}
	for _, name := range []string{"authorization", "x-request-id"} {
		_ = enc.WriteField(hpack.HeaderField{Name: name, Value: "secret", Sensitive: true})
	}
	_ = r.client.F.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndStream: true, EndHeaders: true})
	r.client.Flush()
	r.n.Run()
	f := r.app.Find(http2.FrameHeaders, 1)
	if len(f) != 1 {
		t.Fatal("the request is lost")
	}
	n := 0
	for _, x := range f[0].Fields {
		if x.Sensitive {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d of 2 fields are still sensitive: %v", n, f[0].Fields)
	}
}

// An encoder whose table the peer has shrunk uses one again when the peer allows it.
func TestTableGrowsAgain(t *testing.T) {
	r := newRig(false)
	for _, size := range []uint32{0, 4096} {
		r.app.Settings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: size})
	}
	r.n.Run()
	for id := uint32(1); id <= 5; id += 2 { // the second goes into the table
		r.client.Headers(id, true, with(getReq, "x-long", strings.Repeat("v", 1000))...)
		r.n.Run()
	}
	if got := r.up.Sent(); got > 2600 { // preface, SETTINGS and the field twice
		t.Errorf("%d bytes were sent: the third head repeats what the table could hold", got)
	}
	r.check(t)
}

// A connection whose stream identifiers are used up takes no more streams and goes when its last has ended (RFC 9113, 5.1.1).
func TestIdentifiersRunOut(t *testing.T) {
	r := newRig(false)
	r.cl.SkipTo(1<<31 - 5)
	var refused []*exchange.Stream
	r.h.OnRequest = func(s *exchange.Stream) {
		if r.cl.Room() == 0 {
			refused = append(refused, s)
			return
		}
		s.Forward(r.cl, nil)
	}
	for id := uint32(1); id < 9; id += 2 {
		r.client.Headers(id, true, getReq...)
	}
	r.n.Run()
	if r.cl.Active() != 3 || len(refused) != 1 {
		t.Fatalf("%d streams on the connection, %d not", r.cl.Active(), len(refused))
	}
	for id := uint32(1<<31 - 5); id < 1<<31; id += 2 {
		r.app.Headers(id, true, ":status", "204")
	}
	r.n.Run()
	if r.client.Field(5, 0, ":status") != "204" || !r.app.Over() {
		t.Errorf("the last stream got %q, connection over: %v", r.client.Field(5, 0, ":status"), r.app.Over())
	}
	r.check(t)
}
