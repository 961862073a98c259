package hostile

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2"
)

// flood is a strike that writes the same frames over and over.
func flood(opening []byte, frames ...[]byte) func(*field) error {
	piece := bytes.Repeat(bytes.Join(frames, nil), 200)
	return floodBy(func(i int) []byte {
		if i == 0 {
			return append(opening[:len(opening):len(opening)], piece...)
		}
		return piece
	})
}

func floodBy(next func(i int) []byte) func(*field) error {
	return func(f *field) error {
		p, err := dialH2(f.addr)
		if err != nil {
			return err
		}
		return p.flood(next).calmed()
	}
}

// streams is a strike that opens streams without end, and does the same on each.
func streams(each func(id uint32) []byte) func(*field) error {
	return floodBy(func(i int) (b []byte) {
		for k := range 50 {
			b = append(b, each(uint32(1+2*(50*i+k)))...)
		}
		return b
	})
}

// open is a stream whose request goes on.
var open = frame(1, 4, 1, post...)

var floods = []attack{
	{name: "rapid reset", kind: mesh.AbuseResets, strike: streams(func(id uint32) []byte {
		return append(frame(1, 5, id, get...), frame(3, 0, id, 0, 0, 0, 8)...)
	})},
	{name: "made to reset by a window of 0", kind: mesh.AbuseResets, strike: streams(func(id uint32) []byte {
		return append(frame(1, 4, id, post...), frame(8, 0, id, 0, 0, 0, 0)...)
	})},
	{name: "made to reset by a window that overflows", kind: mesh.AbuseResets, strike: streams(func(id uint32) []byte {
		return append(frame(1, 4, id, post...), frame(8, 0, id, 0x7f, 0xff, 0xff, 0xff)...)
	})},
	{name: "made to reset by a dependency on itself", kind: mesh.AbuseResets, strike: streams(func(id uint32) []byte {
		return append(frame(1, 4, id, post...), frame(2, 0, id, byte(id>>24), byte(id>>16), byte(id>>8), byte(id), 0)...)
	})},
	{name: "made to reset by a short PRIORITY", kind: mesh.AbuseResets, strike: streams(func(id uint32) []byte {
		return append(frame(1, 4, id, post...), frame(2, 0, id, 0)...)
	})},
	{name: "made to reset by DATA after the end", kind: mesh.AbuseResets, strike: streams(func(id uint32) []byte {
		return append(frame(1, 5, id, request("/slow/600000")...), frame(0, 0, id, 'x')...)
	})},
	{name: "made to reset by trailers after the end", kind: mesh.AbuseResets, strike: streams(func(id uint32) []byte {
		return append(frame(1, 5, id, request("/slow/600000")...), frame(1, 5, id, block("x", "y")...)...)
	})},
	{name: "made to reset by a false length", kind: mesh.AbuseResets, strike: streams(func(id uint32) []byte {
		return append(frame(1, 4, id, request("/upload", "content-length", "1")...), frame(0, 1, id, 'x', 'y')...)
	})},
	{name: "empty HEADERS", kind: mesh.AbuseResets, strike: streams(func(id uint32) []byte { return frame(1, 5, id) })},
	{name: "malformed HEADERS", kind: mesh.AbuseResets, strike: streams(func(id uint32) []byte { return frame(1, 5, id, block("x", "y")...) })},
	{name: "CONTINUATION", kind: mesh.AbuseContinuation, strike: flood(frame(1, 1, 1, get...), frame(9, 0, 1))},
	{name: "large CONTINUATION", kind: mesh.AbuseContinuation, strike: floodBy(func(i int) []byte {
		if i == 0 {
			return frame(1, 1, 1, get...)
		}
		return frame(9, 0, 1, bytes.Repeat([]byte{0x82}, 16000)...)
	})},
	{name: "PING", kind: mesh.AbusePing, strike: flood(nil, frame(6, 0, 0, make([]byte, 8)...))},
	{name: "PING that is not asked", kind: mesh.AbusePing, strike: flood(nil, frame(6, 1, 0, make([]byte, 8)...))},
	{name: "SETTINGS", kind: mesh.AbuseSettings, strike: flood(nil, frame(4, 0, 0))},
	{name: "SETTINGS that are acknowledged", kind: mesh.AbuseSettings, strike: flood(nil, frame(4, 1, 0))},
	{name: "many settings at once", kind: mesh.AbuseSettings, strike: flood(nil, frame(4, 0, 0, bytes.Repeat([]byte{0, 4, 0, 0, 0, 1, 0, 4, 0, 0, 0, 2}, 1300)...))},
	{name: "PRIORITY", kind: mesh.AbusePriority, strike: flood(nil, frame(2, 0, 1, 0, 0, 0, 3, 0))},
	{name: "unknown frames", kind: mesh.AbuseFrames, strike: flood(nil, frame(0x42, 0, 0, 1))},
	{name: "empty DATA", kind: mesh.AbuseEmpty, strike: flood(open, frame(0, 0, 1))},
	{name: "DATA of padding", kind: mesh.AbuseEmpty, strike: flood(open, frame(0, 8, 1, append([]byte{20}, make([]byte, 20)...)...))},
	{name: "WINDOW_UPDATE", kind: mesh.AbuseWindow, strike: flood(nil, frame(8, 0, 0, 0, 0, 0, 20))},
	{name: "WINDOW_UPDATE of a stream", kind: mesh.AbuseWindow, strike: flood(open, frame(8, 0, 1, 0, 0, 0, 20))},
	{name: "tiny windows", kind: mesh.AbuseTinyWindow, strike: func(f *field) error {
		p, err := dialH2(f.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		if err != nil {
			return err
		}
		return p.flood(func(i int) []byte {
			if i == 0 {
				return frame(1, 5, 1, request("/bytes/1000000")...)
			}
			return frame(8, 0, 1, 0, 0, 0, 1)
		}).calmed()
	}},
	{name: "HPACK bomb", kind: mesh.AbuseLargeHead, strike: bomb},
	{name: "many fields", kind: mesh.AbuseLargeHead, strike: func(f *field) error {
		return tooLarge(f.addr, request("/", strings.Split(strings.Repeat("x y ", 300), " ")[:600]...))
	}},
	{name: "HTTP1 head", kind: mesh.AbuseLargeHead, strike: func(f *field) error {
		return answered(f.addr, "GET / HTTP/1.1\r\nHost: app\r\nX: "+strings.Repeat("x", 100<<10)+"\r\n\r\n", "HTTP/1.1 431 ")
	}},
	{name: "HTTP1 fields", kind: mesh.AbuseLargeHead, strike: func(f *field) error {
		return answered(f.addr, "GET / HTTP/1.1\r\nHost: app\r\n"+strings.Repeat("X: y\r\n", 1000)+"\r\n", "HTTP/1.1 431 ")
	}},
	{name: "HTTP1 trailers", kind: mesh.AbuseLargeHead, strike: func(f *field) error {
		return answered(f.addr, "POST /upload HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "+strings.Repeat("x", 100<<10)+"\r\n\r\n", "HTTP/1.1 431 ")
	}},
}

func TestFloods(t *testing.T) {
	for i := range floods {
		floods[i].each = true
	}
	runAll(t, floods)
}

// answered sends text, and wants an answer that begins so, and then the end of the connection.
func answered(addr, text, want string) error {
	got, err := http1(addr, text, 1<<20)
	if err != nil || !strings.HasPrefix(got, want) {
		return fmt.Errorf("answer %.80q, %v", got, err)
	}
	return nil
}

// bomb has small blocks stand for much: a field in the dynamic table, referred to thousands of times.
func bomb(f *field) error {
	field := append([]byte{0x40, 6}, "x-bomb"...)
	field = append(field, 0x7f, 0x80|0x59, 0x17) // 3000 bytes (RFC 7541, 5.1): 127 + 89 + 23*128 = 3160
	field = append(field, bytes.Repeat([]byte{'b'}, 3160)...)
	return tooLarge(f.addr, append(append(get[:len(get):len(get)], field...), bytes.Repeat([]byte{0x80 | 62}, 10000)...))
}

// tooLarge sends a head, which must be answered 431 while the connection goes on.
func tooLarge(addr string, head []byte) error {
	p, err := dialH2(addr)
	if err != nil {
		return err
	}
	defer p.Close()
	done := fmt.Errorf("the good request was answered")
	p.reader(func(f http2.Frame) error {
		if f.Header().StreamID == 3 && f.Header().Flags.Has(http2.FlagDataEndStream) {
			return done
		}
		return nil
	})
	if _, err := p.Write(append(frame(1, 5, 1, head...), frame(1, 5, 3, get...)...)); err != nil {
		return err
	}
	if v := <-p.read; v.err != done || v.status[1] != "431" || v.status[3] != "200" {
		return fmt.Errorf("status %v, GOAWAY %v %v, %v", v.status, v.gone, v.code, v.err)
	}
	return nil
}
