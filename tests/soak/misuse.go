package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// misuse is what a client does to a proxy that goes wrong, or ends early. An error is returned by those alone that are
// to succeed.
type misuse struct {
	name string
	do   func(ctx context.Context, r *rig) error
}

var misuses = []misuse{
	{"streams reset mid-request", resetStreams},
	{"streams given up on", func(ctx context.Context, r *rig) error { return slowStreams(ctx, r, false) }},
	{"connection reset with streams open", func(ctx context.Context, r *rig) error { return slowStreams(ctx, r, true) }},
	{"upload reset over HTTP/2", abortUpload},
	{"upload aborted over HTTP/1.1", func(ctx context.Context, r *rig) error {
		return say(ctx, r.old, "POST /upload HTTP/1.1\r\nhost: soak\r\ncontent-length: 1000000\r\n\r\n"+strings.Repeat("x", 100_000), 0, 0, false)
	}},
	{"download reset over HTTP/1.1", func(ctx context.Context, r *rig) error {
		return say(ctx, r.old, "GET /bytes/1000000 HTTP/1.1\r\nhost: soak\r\n\r\n", 20_000, 0, true)
	}},
	{"slow answer given up on over HTTP/1.1", func(ctx context.Context, r *rig) error {
		return say(ctx, r.old, "GET /slow/5000 HTTP/1.1\r\nhost: soak\r\n\r\n", 0, 300*time.Millisecond, false)
	}},
	{"upstream resets", func(ctx context.Context, r *rig) error {
		return say(ctx, r.old, "GET /reset HTTP/1.1\r\nhost: soak\r\n\r\n", 1, 0, false)
	}},
	{"half a request head, half-open", func(ctx context.Context, r *rig) error {
		return say(ctx, r.old, "GET / HTTP/1.1\r\nho", 0, 4*time.Second, false)
	}},
	{"connected and silent", func(ctx context.Context, r *rig) error { return say(ctx, r.web, "", 0, 4*time.Second, true) }},
	{"half a handshake at the server's proxy", func(ctx context.Context, r *rig) error {
		return say(ctx, r.mesh, "\x16\x03\x01\x02\x00\x01\x00", 0, time.Second, true)
	}},
	{"no TLS at the server's proxy", func(ctx context.Context, r *rig) error {
		return say(ctx, r.mesh, "GET / HTTP/1.1\r\nhost: soak\r\n\r\n", 0, 100*time.Millisecond, false)
	}},
	{"TCP half-closed, must be answered", halfClose},
	{"TCP reset", func(ctx context.Context, r *rig) error {
		return say(ctx, r.raw, "GET /bytes/1000000 HTTP/1.1\r\n\r\n", 20_000, 0, true)
	}},
	{"TCP half-closed, then given up on", func(ctx context.Context, r *rig) error {
		return half(ctx, r.raw, "GET /slow/5000 HTTP/1.1\r\n\r\n", 300*time.Millisecond)
	}},
}

// maxAtOnce bounds the misuses that are going on; half-open ones take seconds.
const maxAtOnce = 300

// misuser commits misuses in turn, rate of them a second, until ctx is done, and then lets those that go on come to an end.
type misuser struct {
	done atomic.Uint64

	mu     sync.Mutex
	faults map[string]uint64
}

func (m *misuser) run(ctx context.Context, r *rig, rate float64) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxAtOnce)
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case slots <- struct{}{}:
		default:
			continue // a stalled proxy is not to be buried
		}
		u := misuses[i%len(misuses)]
		wg.Go(func() {
			defer func() { <-slots }()
			if err := u.do(ctx, r); err != nil {
				m.fault(u.name + ": " + err.Error())
			}
			m.done.Add(1)
		})
	}
}

func (m *misuser) fault(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.faults == nil {
		m.faults = map[string]uint64{}
	}
	m.faults[what]++
}

// pause waits a while, of random length up to d; less when ctx is done.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(time.Duration(rand.Int64N(int64(d))))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// limit bounds whatever waits for an answer.
const limit = 20 * time.Second

func dial(to netip.AddrPort) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", to.String(), limit)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(limit))
	return c.(*net.TCPConn), nil
}

// say connects, writes text, reads some bytes (or to the end, if that comes first), waits up to d, and closes or resets.
func say(ctx context.Context, to netip.AddrPort, text string, read int64, d time.Duration, reset bool) error {
	c, err := dial(to)
	if err != nil {
		return err
	}
	defer c.Close()
	_, _ = io.WriteString(c, text)
	_, _ = io.CopyN(io.Discard, c, read)
	pause(ctx, d)
	if reset {
		_ = c.SetLinger(0)
	}
	return nil
}

// half writes text and closes its own direction, waits up to d, and closes.
func half(ctx context.Context, to netip.AddrPort, text string, d time.Duration) error {
	c, err := dial(to)
	if err != nil {
		return err
	}
	defer c.Close()
	_, _ = io.WriteString(c, text)
	_ = c.CloseWrite()
	pause(ctx, d)
	return nil
}

// halfClose closes its own direction, and has to be answered in full nevertheless.
func halfClose(_ context.Context, r *rig) error {
	c, err := dial(r.raw)
	if err != nil {
		return err
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET /bytes/50000 HTTP/1.1\r\n\r\n")
	if err := c.CloseWrite(); err != nil {
		return err
	}
	all, err := io.ReadAll(c)
	if err != nil {
		return errors.Unwrap(err)
	}
	if _, body, _ := strings.Cut(string(all), "\r\n\r\n"); len(body) != 50000 {
		return fmt.Errorf("%d bytes of 50000", len(body))
	}
	return nil
}

// session is an HTTP/2 connection on which one can do what no client would.
type session struct {
	conn *net.TCPConn
	fr   *http2.Framer
	enc  *hpack.Encoder
	buf  strings.Builder
}

func open(to netip.AddrPort) (*session, error) {
	c, err := dial(to)
	if err != nil {
		return nil, err
	}
	s := &session{conn: c, fr: http2.NewFramer(c, c)}
	s.enc = hpack.NewEncoder(&s.buf)
	_, _ = io.WriteString(c, http2.ClientPreface)
	_ = s.fr.WriteSettings()
	return s, nil
}

func (s *session) request(id uint32, method, path string, end bool) {
	s.buf.Reset()
	for _, f := range [][2]string{{":method", method}, {":scheme", "http"}, {":authority", "soak"}, {":path", path}} {
		_ = s.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	_ = s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(s.buf.String()), EndHeaders: true, EndStream: end})
}

// streams is how many a misuse opens: few enough to be a careless client, not an attack.
const streams = 4

func resetStreams(ctx context.Context, r *rig) error {
	s, err := open(r.web)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	for i := range uint32(streams) {
		s.request(2*i+1, "GET", "/bytes/30000", true)
		pause(ctx, 3*time.Millisecond)
		_ = s.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	}
	return nil
}

func slowStreams(ctx context.Context, r *rig, tcp bool) error {
	s, err := open(r.web)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	for i := range uint32(streams) {
		s.request(2*i+1, "GET", "/slow/5000", true)
	}
	pause(ctx, 500*time.Millisecond)
	if tcp {
		_ = s.conn.SetLinger(0)
		return nil
	}
	for i := range uint32(streams) {
		_ = s.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	}
	pause(ctx, 100*time.Millisecond)
	return nil
}

func abortUpload(ctx context.Context, r *rig) error {
	s, err := open(r.web)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	s.request(1, "POST", "/upload", false)
	_ = s.fr.WriteData(1, false, make([]byte, 16000))
	pause(ctx, 100*time.Millisecond)
	_ = s.fr.WriteData(1, false, make([]byte, 16000))
	_ = s.fr.WriteRSTStream(1, http2.ErrCodeCancel)
	return nil
}
