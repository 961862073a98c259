package hostile

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2"
)

// hoard makes n connections, sends ask on each and reads nothing. All of them stay until the bystanders have had a hundred
// answers more.
func hoard(n int, settings []http2.Setting, ask []byte) func(*field) error {
	return func(f *field) error {
		for range n {
			p, err := dialH2(f.addr, settings...)
			if err != nil {
				return err
			}
			defer p.Close()
			if err := p.push(ask); err != nil {
				return err
			}
		}
		return f.wait(100)
	}
}

// waves asks for more each time that the bystanders have had some answers, with windows that stay shut, until the
// connection is ended or the attack was seen elsewhere.
func waves(f *field) error {
	var all []*h2
	for range 5 {
		p, err := dialH2(f.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		if err != nil {
			return err
		}
		defer p.Close()
		p.reader(nil)
		all = append(all, p)
	}
	quick := &field{addr: f.addr, b: f.b}
	for i := 0; f.seen == nil || !f.seen(); i++ {
		for _, p := range all {
			var b []byte
			for k := range 10 {
				b = append(b, frame(1, 5, uint32(1+2*(10*i+k)), request("/bytes/200000")...)...)
			}
			_, _ = p.Write(b) // in vain, if it was sent away
		}
		if err := quick.wait(5); err != nil {
			return err
		}
	}
	if err := f.wait(50); err != nil {
		return err
	}
	for _, p := range all {
		p.Close()
		if v := <-p.read; v.gone {
			if err := v.calmed(); err != nil {
				return err
			}
		}
	}
	return nil
}

// push writes until nothing is taken any more.
func (p *h2) push(b []byte) error {
	for len(b) > 0 {
		_ = p.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := p.Write(b)
		b = b[n:]
		if errors.Is(err, os.ErrDeadlineExceeded) && n == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil // it was sent away: no harm done
		}
	}
	return nil
}

// asks is n requests for path, one on each stream.
func asks(n int, path string) (b []byte) {
	for i := range n {
		b = append(b, frame(1, 5, uint32(1+2*i), request(path)...)...)
	}
	return b
}

var wide = []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1 << 30}}

var hoards = []attack{
	{name: "responses behind a window of 0, more and more", kind: mesh.AbuseUnread, at: 4, strikes: 4, memory: 128, strike: waves},
	{name: "responses behind a window of 1, all at once", at: 4, strikes: 4, memory: 128,
		strike: hoard(5, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1}}, asks(100, "/bytes/200000"))},
	{name: "responses that are not read", at: 4, strikes: 4, memory: 128,
		strike: hoard(5, wide, append(frame(8, 0, 0, 0x3f, 0, 0, 0), asks(100, "/bytes/300000")...))},
	{name: "PING that is not read", at: 4, strikes: 4, memory: 64, strike: hoard(10, nil, bytes.Repeat(frame(6, 0, 0, make([]byte, 8)...), 1<<20))},
	{name: "half a head", at: 4, strikes: 4, memory: 64, strike: hoard(50, nil, frame(1, 1, 1, bytes.Repeat([]byte{0x82}, 16000)...))},
	{name: "new table entries with every request", at: 4, strikes: 4, memory: 64, strike: churn},
	{name: "HTTP1 responses that are not read", at: 4, strikes: 4, memory: 64, strike: plain(50, "GET /bytes/10000000 HTTP/1.1\r\nHost: app\r\n\r\n")},
	{name: "HTTP1 pipeline that is not read", at: 4, strikes: 4, memory: 64, strike: plain(20, strings.Repeat("GET /bytes/1000 HTTP/1.1\r\nHost: app\r\n\r\n", 5000))},
	{name: "HTTP1 half a head", at: 4, strikes: 4, memory: 64, strike: plain(100, "GET / HTTP/1.1\r\nHost: app\r\nX: "+strings.Repeat("x", 60000))},
	{name: "idle connections", at: 4, strikes: 4, memory: 64, strike: plain(500, "GET / HTTP/1.1\r\nHost: app\r\n\r\n")},
	{name: "silent connections", at: 4, strikes: 4, memory: 64, strike: plain(500, "")},
}

func TestHoards(t *testing.T) { runAll(t, hoards) }

// plain is hoard without HTTP/2.
func plain(n int, text string) func(*field) error {
	return func(f *field) error {
		for range n {
			c, err := net.Dial("tcp", f.addr)
			if err != nil {
				return err
			}
			defer c.Close()
			if err := (&h2{Conn: c}).push([]byte(text)); err != nil {
				return err
			}
		}
		return f.wait(100)
	}
}

// churn sends good requests, each with fields that no earlier one had and that fill the table.
func churn(f *field) error {
	p, err := dialH2(f.addr)
	if err != nil {
		return err
	}
	defer p.Close()
	const count = 300
	all, got := errors.New("all are answered"), 0
	p.reader(func(f http2.Frame) error {
		if f.Header().Flags.Has(http2.FlagDataEndStream) && f.Header().StreamID > 0 {
			if got++; got == count {
				return all
			}
		}
		return nil
	})
	for i := range count {
		field := fmt.Appendf([]byte{0x40, 4}, "x-%02d", i%100)
		field = append(append(field, 0x7f, 0xd9, 0x17), bytes.Repeat([]byte{byte('a' + i%26)}, 3160)...)
		if _, err := p.Write(frame(1, 5, uint32(1+2*i), append(get[:len(get):len(get)], field...)...)); err != nil {
			return err
		}
	}
	if v := <-p.read; !errors.Is(v.err, all) {
		return fmt.Errorf("%d of %d answered, GOAWAY %v %v, %v", got, count, v.gone, v.code, v.err)
	}
	return nil
}
