package hostile

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
)

// drip is a strike that sends first, and then drop ten times a second, until the proxy answers so.
func drip(first, drop, want string) func(*field) error {
	return func(f *field) error {
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * patience))
		got := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(c)
			got <- string(b)
		}()
		if _, err := io.WriteString(c, first); err != nil {
			return err
		}
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case s := <-got:
				if !strings.HasPrefix(s, want) {
					return fmt.Errorf("answer %.100q", s)
				}
				return nil
			case <-tick.C:
				_, _ = io.WriteString(c, drop) // the answer tells when it has ended
			}
		}
	}
}

// halfH2 is a strike that sends something of HTTP/2 that never comes to its end.
func halfH2(first, drop []byte) func(*field) error {
	return func(f *field) error {
		p, err := dialH2(f.addr)
		if err != nil {
			return err
		}
		_ = p.SetDeadline(time.Now().Add(2 * patience))
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		return p.flood(func(i int) []byte {
			if i == 0 {
				return first
			}
			<-tick.C
			return drop
		}).calmed()
	}
}

const sized = "POST /upload HTTP/1.1\r\nHost: app\r\nContent-Length: 100000\r\n\r\n"

var slow = []attack{
	{name: "head", kind: mesh.AbuseSlowHead, strike: drip("GET / HTTP/1.1\r\nHost: app\r\nX: ", "x", "HTTP/1.1 408 ")},
	{name: "head that stops", kind: mesh.AbuseSlowHead, strike: drip("GET / HTTP/1.1\r\nHost", "", "HTTP/1.1 408 ")},
	{name: "body", kind: mesh.AbuseSlowBody, strike: drip(sized, "x", "HTTP/1.1 408 ")},
	{name: "body that stops", kind: mesh.AbuseSlowBody, strike: drip(sized, "", "HTTP/1.1 408 ")},
	{name: "chunk", kind: mesh.AbuseSlowBody, strike: drip("POST /upload HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n", "x", "HTTP/1.1 408 ")},
	{name: "HTTP2 preface", kind: mesh.AbuseSlowHead, strike: drip("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", "")},
	{name: "HTTP2 header block", kind: mesh.AbuseSlowHead, strike: halfH2(frame(1, 1, 1, get...), nil)},
	{name: "HTTP2 frame", kind: mesh.AbuseSlowHead, strike: halfH2(frame(1, 5, 1, get...)[:12], nil)},
	{name: "HTTP2 frame that drips", kind: mesh.AbuseSlowHead, strike: halfH2(frame(1, 5, 1, make([]byte, 16000)...)[:9], []byte{0x82})},
	{name: "HTTP2 body", kind: mesh.AbuseSlowBody, strike: slowUpload},
}

// TestSlow makes all of the slow attacks at once.
func TestSlow(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for the proxy's clocks: half a minute")
	}
	t.Parallel()
	for i := range slow {
		slow[i].slow = true
		slow[i].at, slow[i].strikes = 20, 20
	}
	runAll(t, slow)
}

// slowUpload announces a body and sends a byte of it now and then; another stream of the connection is well.
func slowUpload(f *field) error {
	p, err := dialH2(f.addr)
	if err != nil {
		return err
	}
	defer p.Close()
	_ = p.SetDeadline(time.Now().Add(2 * patience))
	p.reader(nil)
	head := block(":method", "POST", ":scheme", "http", ":path", "/upload", ":authority", "app", "content-length", "100000")
	if _, err := p.Write(frame(1, 4, 1, head...)); err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !f.seen() {
		<-tick.C
		if _, err := p.Write(frame(0, 0, 1, 'x')); err != nil {
			return err
		}
	}
	if _, err := p.Write(append(frame(1, 5, 3, get...), frame(7, 0, 0, make([]byte, 8)...)...)); err != nil { // GOAWAY: to be closed in the end
		return err
	}
	if v := <-p.read; v.err != nil || v.status[1] != "408" || v.status[3] != "200" {
		return fmt.Errorf("status %v, %w", v.status, errors.Join(v.err, errNotBoth))
	}
	return nil
}

var errNotBoth = errors.New("want 408 of the slow one and 200 of the other")

// TestSilence: what is silent for good reasons stays as it is, longer than an attacker lasts.
func TestSilence(t *testing.T) {
	if testing.Short() {
		t.Skip("it outlasts the proxy's clocks: half a minute")
	}
	t.Parallel()
	p := start(t, to(serve(t), "detect"))
	chunked, err := net.Dial("tcp", p.addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer chunked.Close()
	stream, err := dialH2(p.addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	stream.reader(nil)
	_ = chunked.SetDeadline(time.Now().Add(2 * patience))
	_ = stream.SetDeadline(time.Now().Add(2 * patience))
	grpc := block(":method", "POST", ":scheme", "http", ":path", "/echo", ":authority", "app", "content-type", "application/grpc", "te", "trailers")
	_, err1 := io.WriteString(chunked, "POST /upload HTTP/1.1\r\nHost: app\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	_, err2 := stream.Write(append(frame(1, 4, 1, grpc...), frame(0, 0, 1, 0, 0, 0, 0, 1, 'x')...))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if err := drip(sized, "", "HTTP/1.1 408 ")(&field{addr: p.addrs[0]}); err != nil {
		t.Fatal(err)
	}
	_, err1 = io.WriteString(chunked, "3\r\ndef\r\n0\r\n\r\n")
	_, err2 = stream.Write(append(frame(0, 1, 1, 0, 0, 0, 0, 1, 'y'), frame(7, 0, 0, make([]byte, 8)...)...))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(chunked); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 ") || !strings.HasSuffix(string(b), "\r\n\r\n6") && !strings.Contains(string(b), "\r\n6\r\n") {
		t.Errorf("chunked upload: %q, %v", b, err)
	}
	if v := <-stream.read; v.err != nil || v.status[1] == "" || len(v.resets) > 0 {
		t.Errorf("gRPC stream: %+v", v)
	}
}
