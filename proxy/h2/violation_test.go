package h2_test

import (
	"bytes"
	"strconv"
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h2"

	"golang.org/x/net/http2"
)

// raw makes a frame without any checks.
func raw(typ, flags byte, id uint32, p ...byte) string {
	return string(append([]byte{byte(len(p) >> 16), byte(len(p) >> 8), byte(len(p)), typ, flags,
		byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}, p...))
}

var z4, z8 = make([]byte, 4), make([]byte, 8)

var connectionErrors = []struct {
	name string
	in   string
	code http2.ErrCode
}{
	{"DATA on 0", raw(0, 0, 0, 1), http2.ErrCodeProtocol},
	{"DATA on idle stream", raw(0, 0, 9, 1), http2.ErrCodeProtocol},
	{"DATA padding", raw(0, 8, 1, 5, 1, 2), http2.ErrCodeProtocol},
	{"HEADERS on 0", raw(1, 4, 0, 0x82), http2.ErrCodeProtocol},
	{"HEADERS on even stream", raw(1, 5, 2, 0x82, 0x84, 0x86), http2.ErrCodeProtocol},
	{"HEADERS padding", raw(1, 0xc, 3, 200, 0x82), http2.ErrCodeProtocol},
	{"HEADERS depends on itself", raw(1, 0x25, 3, 0, 0, 0, 3, 0, 0x82, 0x84, 0x86), http2.ErrCodeProtocol},
	{"bad HPACK", raw(1, 5, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), http2.ErrCodeCompression},
	{"HPACK index out of table", raw(1, 5, 3, 0xfe), http2.ErrCodeCompression},
	{"interrupted block", raw(1, 1, 3, 0x82) + raw(6, 0, 0, z8...), http2.ErrCodeProtocol},
	{"block of another stream", raw(1, 1, 3, 0x82) + raw(9, 4, 5, 0x84), http2.ErrCodeProtocol},
	{"stray CONTINUATION", raw(9, 4, 3, 0x84), http2.ErrCodeProtocol},
	{"many CONTINUATIONs", raw(1, 1, 3, 0x82) + strings.Repeat(raw(9, 0, 3), 20), http2.ErrCodeEnhanceYourCalm},
	{"large block", raw(1, 1, 3, 0x82) + strings.Repeat(raw(9, 0, 3, bytes.Repeat([]byte{0x82}, 16384)...), 17), http2.ErrCodeEnhanceYourCalm},
	{"large block, bad HPACK", raw(1, 1, 3, 0x82) + strings.Repeat(raw(9, 0, 3, bytes.Repeat([]byte{0x80}, 16384)...), 5), http2.ErrCodeCompression},
	{"large block, cut HPACK", raw(1, 1, 3, 0x82) + strings.Repeat(raw(9, 0, 3, bytes.Repeat([]byte{0x82}, 16384)...), 5) + raw(9, 4, 3, 0), http2.ErrCodeCompression},
	{"PRIORITY on 0", raw(2, 0, 0, 0, 0, 0, 0, 0), http2.ErrCodeProtocol},
	{"RST on 0", raw(3, 0, 0, z4...), http2.ErrCodeProtocol},
	{"RST on idle stream", raw(3, 0, 9, z4...), http2.ErrCodeProtocol},
	{"RST length", raw(3, 0, 1, 0), http2.ErrCodeFrameSize},
	{"SETTINGS on stream", raw(4, 0, 1), http2.ErrCodeProtocol},
	{"SETTINGS length", raw(4, 0, 0, 1, 2, 3), http2.ErrCodeFrameSize},
	{"SETTINGS ack with payload", raw(4, 1, 0, 0, 1, 0, 0, 0, 0), http2.ErrCodeFrameSize},
	{"SETTINGS push", raw(4, 0, 0, 0, 2, 0, 0, 0, 2), http2.ErrCodeProtocol},
	{"SETTINGS window", raw(4, 0, 0, 0, 4, 0x80, 0, 0, 0), http2.ErrCodeFlowControl},
	{"SETTINGS frame size", raw(4, 0, 0, 0, 5, 0, 0, 0x10, 0), http2.ErrCodeProtocol},
	{"SETTINGS flood", strings.Repeat(raw(4, 0, 0), 200), http2.ErrCodeEnhanceYourCalm},
	{"PUSH_PROMISE", raw(5, 4, 1, 0, 0, 0, 2), http2.ErrCodeProtocol},
	{"PING on stream", raw(6, 0, 1, z8...), http2.ErrCodeProtocol},
	{"PING length", raw(6, 0, 0, 1), http2.ErrCodeFrameSize},
	{"PING flood", strings.Repeat(raw(6, 0, 0, z8...), 10001), http2.ErrCodeEnhanceYourCalm},
	{"unknown flood", strings.Repeat(raw(0x42, 0, 0), 10001), http2.ErrCodeEnhanceYourCalm},
	{"empty DATA flood", strings.Repeat(raw(0, 0, 1), 1001), http2.ErrCodeEnhanceYourCalm},
	{"GOAWAY on stream", raw(7, 0, 1, z8...), http2.ErrCodeProtocol},
	{"GOAWAY length", raw(7, 0, 0, 1), http2.ErrCodeFrameSize},
	{"WINDOW_UPDATE length", raw(8, 0, 0, 1), http2.ErrCodeFrameSize},
	{"WINDOW_UPDATE 0", raw(8, 0, 0, z4...), http2.ErrCodeProtocol},
	{"WINDOW_UPDATE overflow", raw(8, 0, 0, 0x7f, 0xff, 0xff, 0xff), http2.ErrCodeFlowControl},
	{"WINDOW_UPDATE on idle stream", raw(8, 0, 9, 0, 0, 0, 1), http2.ErrCodeProtocol},
	{"frame too large", "\x00\x40\x01\x00\x00\x00\x00\x00\x01", http2.ErrCodeFrameSize},
	{"connection window", strings.Repeat(raw(0, 0, 1, make([]byte, 16384)...), 1), 0},
}

func TestConnectionErrors(t *testing.T) {
	for _, tt := range connectionErrors {
		t.Run(tt.name, func(t *testing.T) {
			for _, chunk := range []int{0, 13} {
				r := newRig(false)
				r.down.Chunk = chunk
				r.client.Headers(1, false, postReq...)
				r.n.Run()
				r.client.Send(tt.in)
				r.n.Run()
				code, gone := r.goAway(t)
				if tt.code == 0 {
					if gone {
						t.Fatalf("GOAWAY %v", code)
					}
					continue
				}
				if !gone || code != tt.code || !r.client.Over() || r.closed != 1 {
					t.Fatalf("GOAWAY %v %v, over %v, closed %d", gone, code, r.client.Over(), r.closed)
				}
				if len(r.reasons) != 1 || r.reasons[0] != mesh.ReasonBadRequest || r.h.Open != 0 {
					t.Errorf("violations %v, open %d", r.reasons, r.h.Open)
				}
				if f := r.app.Find(http2.FrameRSTStream, 1); len(f) != 1 {
					t.Errorf("the server keeps the stream: %v", f)
				}
				if (tt.code == http2.ErrCodeEnhanceYourCalm) != (r.abuses[0] != mesh.AbuseNone) {
					t.Errorf("%v is counted as abuse %q", tt.code, r.abuses[0])
				}
			}
		})
	}
}

// A server that breaks the protocol, such as one that speaks HTTP/1.1, gets nothing of what is sent again because of it.
func TestBrokenServerIsNotAskedAgain(t *testing.T) {
	r := newRig(false)
	r.h.OnLost = func(s *exchange.Stream, reason mesh.Reason) bool {
		if reason != mesh.ReasonUpstreamProto || r.cl.Room() > 0 {
			t.Errorf("lost for %v, and the connection takes %d streams", reason, r.cl.Room())
		}
		return false
	}
	r.client.Headers(1, true, getReq...)
	r.client.Headers(3, true, getReq...)
	r.n.Run()
	r.app.Send("HTTP/1.1 400 Bad Request\r\n\r\n")
	r.n.Run()
	if r.h.Losses != 2 || r.h.Open != 0 {
		t.Errorf("%d lost, %d open", r.h.Losses, r.h.Open)
	}
	if len(r.client.Find(http2.FrameGoAway, 0)) != 0 {
		t.Error("the client's connection went away for it")
	}
}

func TestPreface(t *testing.T) {
	for _, in := range []string{"GET / HTTP/1.1\r\nHost: h\r\n\r\n", http2.ClientPreface + raw(6, 0, 0, make([]byte, 8)...), http2.ClientPreface + raw(4, 1, 0)} {
		n := flowtest.New()
		a, b := n.Pair()
		p := exchangetest.NewPeer(a)
		h2.NewServer(b, &exchangetest.Handler{}, exchange.ServerOptions{Clock: n})
		p.Send(in)
		n.Run()
		if !p.Over() || !strings.Contains(p.Take(), raw(7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)) {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestMalformedRequests(t *testing.T) {
	for name, kv := range map[string][]string{
		"upper case":            with(getReq, "X-A", "1"),
		"space in name":         with(getReq, "x a", "1"),
		"empty name":            with(getReq, "", "1"),
		"connection":            with(getReq, "connection", "close"),
		"transfer-encoding":     with(getReq, "transfer-encoding", "chunked"),
		"upgrade":               with(getReq, "upgrade", "x"),
		"keep-alive":            with(getReq, "keep-alive", "x"),
		"te":                    with(getReq, "te", "gzip"),
		"LF in value":           with(getReq, "x", "a\nb"),
		"CR in value":           with(getReq, "x", "a\rb"),
		"NUL in value":          with(getReq, "x", "a\x00b"),
		"space around value":    with(getReq, "x", " a"),
		"pseudo after regular":  {":method", "GET", ":scheme", "http", "x", "y", ":path", "/"},
		"unknown pseudo":        with([]string{":foo", "x"}, getReq...),
		"response pseudo":       with([]string{":status", "200"}, getReq...),
		"repeated pseudo":       with([]string{":method", "GET"}, getReq...),
		"no method":             {":scheme", "http", ":path", "/"},
		"no scheme":             {":method", "GET", ":path", "/"},
		"no path":               {":method", "GET", ":scheme", "http"},
		"empty path":            {":method", "GET", ":scheme", "http", ":path", ""},
		"relative path":         {":method", "GET", ":scheme", "http", ":path", "a"},
		"space in path":         {":method", "GET", ":scheme", "http", ":path", "/a b"},
		"CRLF in path":          {":method", "GET", ":scheme", "http", ":path", "/ HTTP/1.1\r\nx: y"},
		"CRLF in method":        {":method", "GET / HTTP/1.1\r\n", ":scheme", "http", ":path", "/"},
		"CRLF in authority":     {":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a\r\nb"},
		"user in authority":     {":method", "GET", ":scheme", "http", ":path", "/", ":authority", "u@h"},
		"host differs":          with(getReq, "host", "other"),
		"two hosts":             with(getReq, "host", "h", "host", "h"),
		"bad length":            with(getReq, "content-length", "x"),
		"two lengths":           with(getReq, "content-length", "0", "content-length", "0"),
		"length without body":   with(getReq, "content-length", "5"),
		"CONNECT with path":     {":method", "CONNECT", ":scheme", "http", ":path", "/", ":authority", "h:1"},
		"CONNECT without host":  {":method", "CONNECT"},
		"extended CONNECT":      {":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/", ":authority", "h"},
		"protocol without that": with([]string{":protocol", "websocket"}, getReq...),
	} {
		r := newRig(false)
		r.client.Headers(1, true, kv...)
		r.client.Headers(3, true, getReq...)
		r.n.Run()
		if f := r.client.Find(http2.FrameRSTStream, 1); len(f) != 1 || f[0].Code != http2.ErrCodeProtocol {
			t.Errorf("%s: %v", name, f)
		}
		if len(r.app.Find(http2.FrameHeaders, 3)) != 0 || len(r.app.Find(http2.FrameHeaders, 1)) != 1 || len(r.h.Log) != 0 {
			t.Errorf("%s: the good request did not get through alone", name)
		}
	}
}

func TestBodyLength(t *testing.T) {
	for _, tt := range []struct{ announced, sent string }{{"3", "abcd"}, {"3", "ab"}, {"0", "a"}} {
		r := newRig(false)
		r.client.Headers(1, false, with(postReq, "content-length", tt.announced)...)
		r.client.Body(1, true, []byte(tt.sent))
		r.client.Headers(3, true, getReq...)
		r.n.Run()
		if f := r.client.Find(http2.FrameRSTStream, 1); len(f) != 1 || f[0].Code != http2.ErrCodeProtocol {
			t.Errorf("%v: client got %v", tt, f)
		}
		if _, end := r.app.Bytes(1); end {
			t.Errorf("%v: went through", tt)
		}
		r.app.Headers(3, false, ":status", "200", "content-length", tt.announced)
		r.app.Body(3, true, []byte(tt.sent))
		r.n.Run()
		if f := r.client.Find(http2.FrameRSTStream, 3); len(f) != 1 {
			t.Errorf("%v: response: client got %v", tt, f)
		}
		if f := r.app.Find(http2.FrameRSTStream, 3); len(f) != 1 || r.h.Log[1].Reason != mesh.ReasonUpstreamProto {
			t.Errorf("%v: response: app got %v, log %v", tt, f, r.h.Log)
		}
	}
}

func TestStreamErrors(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   string
		code http2.ErrCode
	}{
		{"window of 0", raw(8, 0, 1, 0, 0, 0, 0), http2.ErrCodeProtocol},
		{"window overflow", raw(8, 0, 1, 0x7f, 0xff, 0xff, 0xff), http2.ErrCodeFlowControl},
		{"priority of itself", raw(2, 0, 1, 0, 0, 0, 1, 0), http2.ErrCodeProtocol},
		{"priority length", raw(2, 0, 1, 0), http2.ErrCodeFrameSize},
		{"trailers without end", raw(1, 4, 1, 0), http2.ErrCodeCompression},
		{"pseudo trailers", raw(1, 5, 1, 0x82), http2.ErrCodeProtocol},
		{"window exceeded", strings.Repeat(raw(0, 0, 1, make([]byte, 16384)...), 17), http2.ErrCodeFlowControl},
		{"DATA after end", raw(0, 1, 1) + raw(0, 0, 1, 1), http2.ErrCodeStreamClosed},
		{"HEADERS after end", raw(0, 1, 1) + raw(1, 5, 1, 0x88), http2.ErrCodeStreamClosed},
	} {
		r := newRig(false)
		r.h.OnRequest = func(*exchange.Stream) {}
		r.client.Headers(1, false, postReq...)
		r.n.Run()
		r.client.Send(tt.in)
		r.n.Run()
		if tt.code == http2.ErrCodeCompression {
			if code, _ := r.goAway(t); code != tt.code {
				t.Errorf("%s: %v", tt.name, code)
			}
			continue
		}
		f := r.client.Find(http2.FrameRSTStream, 1)
		if _, gone := r.goAway(t); gone || len(f) < 1 || f[0].Code != tt.code || r.h.Open != 0 {
			t.Errorf("%s: %v, gone %v", tt.name, f, gone)
		}
	}
}

func TestHeaderLimits(t *testing.T) {
	many := append([]string(nil), getReq...)
	for i := range 300 {
		many = append(many, "x-"+strconv.Itoa(i), "y")
	}
	bomb := with(getReq, "x-bomb", strings.Repeat("b", 3000))
	for range 40 { // small on the wire, large when decoded
		bomb = append(bomb, "x-bomb", strings.Repeat("b", 3000))
	}
	for name, kv := range map[string][]string{"fields": many, "bomb": bomb} {
		r := newRig(false)
		r.client.Headers(1, true, kv...)
		r.client.Headers(3, true, getReq...)
		r.n.Run()
		if r.client.Field(1, 0, ":status") != "431" || len(r.reasons) != 1 || r.reasons[0] != mesh.ReasonTooLarge {
			t.Errorf("%s: %v, violations %v", name, r.client.Find(http2.FrameHeaders, 1), r.reasons)
		}
		if f := r.app.Find(http2.FrameHeaders, 1); len(f) != 1 || flat(f[0]) != ":method=GET;:scheme=http;:path=/;:authority=h;" {
			t.Errorf("%s: the next request became %v", name, f)
		}
	}
}

func TestRapidReset(t *testing.T) {
	for _, internal := range []bool{false, true} {
		r := newRig(internal)
		for i := range 600 {
			id := uint32(1 + 2*i)
			r.client.Headers(id, true, getReq...)
			_ = r.client.F.WriteRSTStream(id, http2.ErrCodeCancel)
			r.client.Flush()
		}
		r.n.Run()
		code, gone := r.goAway(t)
		if internal && gone || !internal && code != http2.ErrCodeEnhanceYourCalm {
			t.Errorf("internal %v: GOAWAY %v %v", internal, gone, code)
		}
		if r.h.Open != 0 || !internal && len(r.h.Log) > 501 {
			t.Errorf("open %d, served %d", r.h.Open, len(r.h.Log))
		}
	}
	r := newRig(false) // made to reset by the client's nonsense
	for i := range 600 {
		id := uint32(1 + 2*i)
		r.client.Headers(id, true, getReq...)
		r.client.Send(raw(8, 0, id, 0, 0, 0, 0))
	}
	r.n.Run()
	if code, _ := r.goAway(t); code != http2.ErrCodeEnhanceYourCalm {
		t.Errorf("made you reset: %v", code)
	}
}

func TestBadServer(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   string
		conn bool // the connection ends
	}{
		{"DATA before HEADERS", raw(0, 0, 1, 1), false},
		{"no status", raw(1, 4, 1, 0x82), false},
		{"interim with end", raw(1, 5, 1, 0x08, 3, '1', '0', '3'), false},
		{"101", raw(1, 4, 1, 0x08, 3, '1', '0', '1'), false},
		{"bad status", raw(1, 4, 1, 0x08, 3, '2', '0', 'x'), false},
		{"connection field", raw(1, 4, 1, append([]byte{0x88, 0, 10}, "connection\x01x"...)...), false},
		{"push", raw(5, 4, 1, 0, 0, 0, 2), true},
		{"idle stream", raw(0, 0, 7, 1), true},
		{"even stream", raw(1, 5, 2, 0x88), true},
		{"bad HPACK", raw(1, 5, 1, 0xfe), true},
		{"enable push", raw(4, 0, 0, 0, 2, 0, 0, 0, 1), true},
		{"interim flood", strings.Repeat(raw(1, 4, 1, 0x08, 3, '1', '0', '3'), 40), false},
	} {
		r := newRig(false)
		r.client.Headers(1, true, getReq...)
		r.n.Run()
		r.app.Send(tt.in)
		r.n.Run()
		if len(r.h.Log) != 1 || r.h.Log[0].Reason != mesh.ReasonUpstreamProto || r.app.Over() != tt.conn {
			t.Errorf("%s: log %v, over %v", tt.name, r.h.Log, r.app.Over())
		}
		st := r.client.Find(http2.FrameHeaders, 1)
		if n := len(st); n == 0 || r.client.Field(1, n-1, ":status") != "502" || r.client.Field(1, n-1, "conduit-reason") != "upstream-protocol" {
			t.Errorf("%s: client got %v", tt.name, r.client.Frames)
		}
	}
}

func TestTableSizeUpdate(t *testing.T) {
	r := newRig(false)
	for i, size := range []uint32{0, 100, 4096} {
		r.app.Settings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: size})
		r.app.F.ReadMetaHeaders.SetAllowedMaxDynamicTableSize(size)
		r.n.Run()
		for j := range 3 {
			id := uint32(1 + 6*i + 2*j)
			r.client.Headers(id, true, with(getReq, "x-a", "1")...)
			r.n.Run()
			if f := r.app.Find(http2.FrameHeaders, id); len(f) != 1 || flat(f[0]) != ":method=GET;:scheme=http;:path=/;:authority=h;x-a=1;" {
				t.Fatalf("size %d: %v %v", size, f, r.app.Errs)
			}
		}
	}
	r.check(t)
}

func TestLargeHead(t *testing.T) {
	r := newRig(false)
	big := string(bytes.Repeat([]byte("\x7e"), 40000)) // CONTINUATION in both directions
	block := append([]byte(nil), r.client.Block(with(getReq, "x-big", big)...)...)
	_ = r.client.F.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:16000], EndStream: true})
	_ = r.client.F.WriteContinuation(1, false, block[16000:32000])
	_ = r.client.F.WriteContinuation(1, true, block[32000:])
	r.client.Flush()
	r.n.Run()
	if f := r.app.Find(http2.FrameHeaders, 1); len(f) != 1 || !strings.Contains(flat(f[0]), big) {
		t.Errorf("app got %d frames, errors %v, client %v", len(f), r.app.Errs, r.client.Find(http2.FrameHeaders, 1))
	}
}
