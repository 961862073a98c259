package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/tests/tcptest"

	"golang.org/x/net/http2"
)

// speaking is a server of HTTP/2 that sends SETTINGS, waits for the first request, and then writes what next gives until it
// is sent away. It reads all the while, unless deaf.
func speaking(deaf bool, next func(i int) []byte) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		_, _ = c.Write(append(frame(4, 0, 0, 0, 3, 0, 0, 3, 0xe8), frame(4, 1, 0)...))
		asked := make(chan struct{})
		go func() {
			f := http2.NewFramer(io.Discard, c)
			once := sync.OnceFunc(func() { close(asked) })
			defer once()
			for {
				fr, err := f.ReadFrame()
				if err != nil {
					return
				}
				if fr.Header().Type == http2.FrameHeaders {
					if once(); deaf {
						return
					}
				}
			}
		}()
		<-asked
		for i := 0; ; i++ {
			b := next(i)
			if b == nil {
				_, _ = io.Copy(io.Discard, c) // until the proxy goes
				return
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
}

// again writes the same frames over and over, after opening.
func again(opening []byte, frames ...[]byte) func(net.Conn) {
	piece := bytes.Repeat(bytes.Join(frames, nil), 200)
	return speaking(false, func(i int) []byte {
		if i == 0 && opening != nil {
			return opening
		}
		return piece
	})
}

// once answers every request with frames for its stream, and writes nothing else.
func once(answer func(id uint32) []byte) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		_, _ = c.Write(append(frame(4, 0, 0), frame(4, 1, 0)...))
		f := http2.NewFramer(io.Discard, c)
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				return
			}
			if fr.Header().Type == http2.FrameHeaders {
				_, _ = c.Write(answer(fr.Header().StreamID))
			}
		}
	}
}

var ok200 = frame(1, 4, 1, 0x88)

// behind are servers that abuse the proxy as their client.
var behind = []struct {
	name   string
	each   func(net.Conn)
	kind   mesh.Abuse
	status int    // of the answer to the proxy's client; 0: it has none within the time that the client gives
	reason string // that the proxy has for it; counted, too
}{
	{"PING", again(nil, frame(6, 0, 0, make([]byte, 8)...)), mesh.AbusePing, 502, "upstream-protocol"},
	{"SETTINGS", again(nil, frame(4, 0, 0)), mesh.AbuseSettings, 502, "upstream-protocol"},
	{"GOAWAY", again(nil, frame(7, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0)), mesh.AbuseSettings, 502, "upstream-protocol"},
	{"WINDOW_UPDATE", again(nil, frame(8, 0, 0, 0, 0, 0, 20)), mesh.AbuseWindow, 502, "upstream-protocol"},
	{"PRIORITY", again(nil, frame(2, 0, 3, 0, 0, 0, 5, 0)), mesh.AbusePriority, 502, "upstream-protocol"},
	{"unknown frames", again(nil, frame(0x42, 0, 0)), mesh.AbuseFrames, 502, "upstream-protocol"},
	{"empty DATA", again(ok200, frame(0, 0, 1)), mesh.AbuseEmpty, 200, "upstream-protocol"},
	{"CONTINUATION", again(frame(1, 0, 1, 0x88), frame(9, 0, 1)), mesh.AbuseContinuation, 502, "upstream-protocol"},
	{"interim responses", again(nil, frame(1, 4, 1, 8, 3, '1', '0', '3')), mesh.AbuseNone, 502, "upstream-protocol"},
	{"HPACK bomb", once(func(id uint32) []byte { return frame(1, 5, id, blow()...) }), mesh.AbuseNone, 502, "header-too-large"},
	{"malformed head", once(func(id uint32) []byte { return frame(1, 5, id, 0x82) }), mesh.AbuseNone, 502, "upstream-protocol"},
	{"nonsense", func(c net.Conn) { _, _ = io.WriteString(c, strings.Repeat("SSH-2.0-x\r\n", 100)) }, mesh.AbuseNone, 502, "upstream-protocol"},
	{"more than the window", again(ok200, frame(0, 0, 1, make([]byte, 16384)...)), mesh.AbuseNone, 200, ""},
	{"no answer", once(func(uint32) []byte { return nil }), mesh.AbuseNone, 0, ""},
	{"half an answer", once(func(id uint32) []byte { return frame(1, 1, id, 0x88) }), mesh.AbuseNone, 0, ""},
	{"deaf", speaking(true, func(i int) []byte {
		if i > 100000 {
			return nil
		}
		return frame(6, 0, 0, make([]byte, 8)...)
	}), mesh.AbusePing, 502, "upstream-protocol"},
}

// blow is a block that decodes to far more than it is.
func blow() []byte {
	b := append([]byte{0x88, 0x40, 6}, "x-bomb"...)
	b = append(append(b, 0x7f, 0xd9, 0x17), bytes.Repeat([]byte{'b'}, 3160)...)
	return append(b, bytes.Repeat([]byte{0x80 | 62}, 10000)...)
}

// TestServers: what one server behind the proxy does concerns its own clients alone.
func TestServers(t *testing.T) {
	app := serve(t)
	for _, s := range behind {
		t.Run(s.name, func(t *testing.T) {
			p := start(t, to(app, "detect"), to(tcptest.Serve(t, s.each), "http2"))
			b := watch(t, p.addrs[0])
			defer b.stop()
			visit(t, p.addrs[1], s.status, s.reason)
			f := &field{addr: p.addrs[0], b: b}
			if s.kind != mesh.AbuseNone {
				f.seen = func() bool { return p.count("conduit_proxy_abuse_total", "kind", string(s.kind)) > 0 }
			}
			if err := f.wait(20); err != nil {
				t.Error(err)
			}
			if most := p.memory(); most > 64 {
				t.Errorf("the proxy has %.0f MiB of memory", most)
			}
		})
	}
}

// visit asks once, and gives up after two seconds.
func visit(t *testing.T, addr string, status int, reason string) {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols}
	defer tr.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr+"/", nil)
	if err != nil {
		t.Error(err)
		return
	}
	res, err := tr.RoundTrip(req)
	if status == 0 && errors.Is(err, context.DeadlineExceeded) {
		return
	}
	if err != nil {
		t.Errorf("no answer: %v", err)
		return
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	switch {
	case res.StatusCode != status:
		t.Errorf("status %d, reason %q", res.StatusCode, res.Header.Get(mesh.ReasonHeader))
	case status == 502 && res.Header.Get(mesh.ReasonHeader) != reason:
		t.Errorf("reason %q", res.Header.Get(mesh.ReasonHeader))
	case status == 200 && err == nil:
		t.Errorf("%d bytes, and a good end", n)
	}
}

// plainly are servers of HTTP/1.1 that abuse the proxy as their client.
var plainly = []struct {
	name   string
	answer func(i int) string
	status int
}{
	{"head without end", func(int) string { return "x: " + strings.Repeat("y", 1000) + "\r\n" }, 502},
	{"line without end", func(int) string { return strings.Repeat("y", 1000) }, 502},
	{"interim responses", func(int) string { return "HTTP/1.1 103 Early Hints\r\n\r\n" }, 502},
	{"chunk extensions", endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", strings.Repeat("x", 1000)), 200},
	{"trailers", endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", "x: "+strings.Repeat("y", 1000)+"\r\n"), 200},
	{"tiny chunks", endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", strings.Repeat("1\r\nx\r\n", 100)), 200},
	{"two lengths", func(int) string { return "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx" }, 502},
	{"nobody asked", endless("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), 0},
}

func endless(first, then string) func(int) string {
	return func(i int) string {
		if i == 0 {
			return first
		}
		return then
	}
}

func TestPlainServers(t *testing.T) {
	app := serve(t)
	for _, s := range plainly {
		t.Run(s.name, func(t *testing.T) {
			bad := tcptest.Serve(t, func(c net.Conn) {
				if _, err := c.Read(make([]byte, 4096)); err != nil {
					return
				}
				head := ""
				if strings.HasPrefix(s.name, "head") || strings.HasPrefix(s.name, "line") {
					head = "HTTP/1.1 200 OK\r\n"
				}
				for i := 0; ; i++ {
					if _, err := io.WriteString(c, head+s.answer(i)); err != nil {
						return
					}
					head = ""
				}
			})
			p := start(t, to(app, "detect"), to(bad, "http1"))
			b := watch(t, p.addrs[0])
			defer b.stop()
			for range 3 {
				if err := ask(p.addrs[1], s.status); err != nil {
					t.Error(err)
				}
			}
			if err := (&field{addr: p.addrs[0], b: b}).wait(20); err != nil {
				t.Error(err)
			}
			if most := p.memory(); most > 64 {
				t.Errorf("the proxy has %.0f MiB of memory", most)
			}
		})
	}
}

// ask sends one request and reads what comes of it, not for longer than two seconds. 0 is a good answer, 200 one that does
// not come to a good end.
func ask(addr string, status int) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(c, 10<<20))
	b = bytes.ReplaceAll(b, []byte("HTTP/1.1 103 Early Hints\r\n\r\n"), nil)
	good := err == nil && (bytes.HasSuffix(b, []byte("\r\n0\r\n\r\n")) || bytes.Contains(b, []byte("\r\ncontent-length: 0\r\n")))
	want := max(status, 200)
	if !bytes.HasPrefix(b, fmt.Appendf(nil, "HTTP/1.1 %d ", want)) || good != (status == 0) && status != 502 {
		return fmt.Errorf("answer of %d bytes, %.100q, %w", len(b), b, err)
	}
	return nil
}
