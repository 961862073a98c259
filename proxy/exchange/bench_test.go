package exchange_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/h1"
	"conduit.io/conduit/proxy/h2"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// hole is a connection that swallows what is written.
type hole struct{ n int }

func (h *hole) SetReceiver(flow.Receiver)  {}
func (h *hole) Write(p []byte)             { h.n += len(p) }
func (h *hole) Backlog() int               { return 0 }
func (h *hole) Pause()                     {}
func (h *hole) Resume()                    {}
func (h *hole) CloseWrite()                {}
func (h *hole) Close()                     { panic("closed") }
func (h *hole) Abort()                     { panic("aborted") }
func (h *hole) LocalAddr() netip.AddrPort  { return netip.AddrPort{} }
func (h *hole) RemoteAddr() netip.AddrPort { return netip.AddrPort{} }

// clock moves on at every look, so that every frame has a turn of its own; its timers never run.
type clock struct{ now int64 }

func (c *clock) Now() int64                             { c.now += 1000; return c.now }
func (c *clock) After(time.Duration, func()) flow.Timer { return c }
func (c *clock) Stop()                                  {}

// straight forwards everything to one upstream.
type straight struct {
	up    exchange.Upstream
	extra []hpack.HeaderField
	done  int
}

func (h *straight) Request(s *exchange.Stream)              { s.Forward(h.up, h.extra) }
func (h *straight) Response(*exchange.Stream)               {}
func (h *straight) Lost(*exchange.Stream, mesh.Reason) bool { return false }
func (h *straight) Done(*exchange.Stream)                   { h.done++ }

// frames is a prepared sequence of frames for one stream, whose identifier is patched in.
type frames struct {
	b  []byte
	at []int
}

func (f *frames) id(id uint32) []byte {
	for _, i := range f.at {
		binary.BigEndian.PutUint32(f.b[i+5:], id)
	}
	return f.b
}

func prepare(build func(fr *http2.Framer, block func(kv ...string) []byte)) *frames {
	var out, hb bytes.Buffer
	enc := hpack.NewEncoder(&hb)
	block := func(kv ...string) []byte {
		for range 2 { // the second block is all indexed
			hb.Reset()
			for i := 0; i < len(kv); i += 2 {
				_ = enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
			}
		}
		return hb.Bytes()
	}
	build(http2.NewFramer(&out, nil), block)
	f := &frames{b: out.Bytes()}
	for i := 0; i < len(f.b); {
		if binary.BigEndian.Uint32(f.b[i+5:]) != 0 {
			f.at = append(f.at, i)
		}
		i += 9 + int(f.b[i])<<16 + int(f.b[i+1])<<8 + int(f.b[i+2])
	}
	return f
}

// first makes the frames that teach the peer's decoder what prepare's second blocks refer to.
func first(kv ...string) []byte {
	var hb bytes.Buffer
	enc := hpack.NewEncoder(&hb)
	for i := 0; i < len(kv); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return hb.Bytes()
}

var (
	reqKV = []string{":method", "GET", ":scheme", "http", ":authority", "web.demo", ":path", "/", "user-agent", "bench/1.0", "accept", "*/*"}
	resKV = []string{":status", "200", "content-type", "text/plain", "content-length", "128", "server", "bench"}
)

func headers(id uint32, end bool, block []byte) []byte {
	var b bytes.Buffer
	_ = http2.NewFramer(&b, nil).WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: end, EndHeaders: true})
	return b.Bytes()
}

func greeting(preface bool) []byte {
	var b bytes.Buffer
	if preface {
		b.WriteString(http2.ClientPreface)
	}
	fr := http2.NewFramer(&b, nil)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000})
	_ = fr.WriteWindowUpdate(0, 1<<30)
	return b.Bytes()
}

func BenchmarkH2ToH2(b *testing.B) {
	pool := exchange.NewPool()
	h := &straight{}
	cl := h2.NewClient(&hole{}, exchange.ClientOptions{Clock: &clock{}, Pool: pool, Internal: true})
	h.up = cl
	sv := h2.NewServer(&hole{}, h, exchange.ServerOptions{Clock: &clock{}, Pool: pool})
	sv.Data(greeting(true))
	cl.Data(greeting(false))
	sv.Data(headers(1, true, first(reqKV...)))
	cl.Data(headers(1, true, first(append([]string{}, resKV[:4]...)...)))
	req := prepare(func(fr *http2.Framer, block func(...string) []byte) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(reqKV...), EndStream: true, EndHeaders: true})
	})
	res := prepare(func(fr *http2.Framer, block func(...string) []byte) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(resKV[:4]...), EndHeaders: true})
		_ = fr.WriteData(1, true, make([]byte, 128))
	})
	var wu bytes.Buffer
	_ = http2.NewFramer(&wu, nil).WriteWindowUpdate(0, 128<<10)
	b.ReportAllocs()
	b.ResetTimer()
	id := uint32(3)
	for i := range b.N {
		sv.Data(req.id(id))
		cl.Data(res.id(id))
		id += 2
		if i%1024 == 1023 {
			sv.Data(wu.Bytes())
		}
	}
	if h.done != b.N+1 {
		b.Fatalf("%d of %d", h.done, b.N)
	}
}

func BenchmarkH1ToH2(b *testing.B) {
	pool := exchange.NewPool()
	cl := h2.NewClient(&hole{}, exchange.ClientOptions{Clock: &clock{}, Pool: pool, Internal: true})
	h := &straight{up: cl, extra: []hpack.HeaderField{{Name: "conduit-dst", Value: "80/http1"}, {Name: "conduit-client", Value: "10.0.0.1:40000"}}}
	sv := h1.NewServer(&hole{}, h, exchange.ServerOptions{Clock: &clock{}, Pool: pool})
	cl.Data(greeting(false))
	sv.Data([]byte("GET / HTTP/1.1\r\nHost: web.demo\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\r\n"))
	cl.Data(headers(1, true, first(append([]string{}, resKV[:4]...)...)))
	req := []byte("GET / HTTP/1.1\r\nHost: web.demo\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\r\n")
	res := prepare(func(fr *http2.Framer, block func(...string) []byte) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(resKV[:4]...), EndHeaders: true})
		_ = fr.WriteData(1, true, make([]byte, 128))
	})
	b.ReportAllocs()
	b.ResetTimer()
	id := uint32(3)
	for range b.N {
		sv.Data(req)
		cl.Data(res.id(id))
		id += 2
	}
	if h.done != b.N+1 {
		b.Fatalf("%d of %d", h.done, b.N)
	}
}

func BenchmarkH1ToH1(b *testing.B) {
	for _, unique := range []bool{false, true} {
		name := "same"
		if unique {
			name = "unique"
		}
		b.Run(name, func(b *testing.B) {
			pool := exchange.NewPool()
			cl := h1.NewClient(&hole{}, exchange.ClientOptions{Clock: &clock{}, Pool: pool})
			h := &straight{up: cl}
			sv := h1.NewServer(&hole{}, h, exchange.ServerOptions{Clock: &clock{}, Pool: pool})
			req := []byte("GET /00000000 HTTP/1.1\r\nHost: web.demo\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\r\n")
			res := append([]byte("HTTP/1.1 200 OK\r\nContent-Length: 128\r\nServer: bench\r\n\r\n"), make([]byte, 128)...)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if unique {
					for k, v := 0, i; k < 8; k, v = k+1, v/10 {
						req[5+k] = byte('0' + v%10)
					}
				}
				sv.Data(req)
				cl.Data(res)
			}
			if h.done != b.N {
				b.Fatalf("%d of %d", h.done, b.N)
			}
		})
	}
}

func BenchmarkH2Body(b *testing.B) {
	pool := exchange.NewPool()
	h := &straight{}
	cl := h2.NewClient(&hole{}, exchange.ClientOptions{Clock: &clock{}, Pool: pool, Internal: true})
	h.up = cl
	sv := h2.NewServer(&hole{}, h, exchange.ServerOptions{Clock: &clock{}, Pool: pool})
	sv.Data(greeting(true))
	cl.Data(greeting(false))
	sv.Data(headers(1, true, first(reqKV...)))
	cl.Data(headers(1, false, first(append([]string{}, resKV[:4]...)...)))
	var data, wu bytes.Buffer
	_ = http2.NewFramer(&data, nil).WriteData(1, false, make([]byte, 16384))
	_ = http2.NewFramer(&wu, nil).WriteWindowUpdate(0, 16384)
	_ = http2.NewFramer(&wu, nil).WriteWindowUpdate(1, 16384)
	b.SetBytes(16384)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		cl.Data(data.Bytes())
		sv.Data(wu.Bytes())
	}
}
