package differential

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/tests/tcptest"
)

// smuggled is a request that must not reach any server: it comes behind one that nobody can be sure where to end.
const smuggled = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"

// ambiguous are requests of which the end, or the meaning, depends on who reads them. None of their heads may be
// passed on.
var ambiguous = []struct {
	name, request string
	status        int
}{
	{"length and coding", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"coding and length", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400},
	{"length 0 and coding", "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"two lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\n", 400},
	{"two equal lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400},
	{"a list of lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0, 0\r\n\r\n", 400},
	{"a list of unequal lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0,37\r\n\r\n", 400},
	{"signed length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +0\r\n\r\n", 400},
	{"negative length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400},
	{"hexadecimal length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x0\r\n\r\n", 400},
	{"length with a blank", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0 0\r\n\r\n", 400},
	{"length that overflows", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551616\r\n\r\n", 400},
	{"empty length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n", 400},
	{"length in a fold", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n 37\r\n\r\n", 400},
	{"hidden length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 37\r\n\r\n", 400},
	{"length with a tab before the colon", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length\t: 37\r\n\r\n", 400},
	{"connection names the length", "POST / HTTP/1.1\r\nHost: h\r\nConnection: content-length, transfer-encoding\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"chunked is not last", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400},
	{"chunked twice", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400},
	{"two coding fields", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"identity and chunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"unknown coding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
	{"misspelt coding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400},
	{"quoted coding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400},
	{"coding with a parameter", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 400},
	{"coding behind a vertical tab", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", 400},
	{"empty coding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", 400},
	{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n", 400},
	{"coding in a fold", "POST / HTTP/1.1\r\nHost: h\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"hidden coding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400},

	{"bare LF ends the request line", "GET / HTTP/1.1\nHost: h\r\n\r\n", 400},
	{"bare LF ends a field", "GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", 400},
	{"bare LF ends the head", "GET / HTTP/1.1\r\nHost: h\r\n\n", 400},
	{"bare LF twice", "GET / HTTP/1.1\nHost: h\n\n", 400},
	{"bare CR ends a field", "GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n", 400},
	{"bare CR in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n", 400},
	{"CR CR LF", "GET / HTTP/1.1\r\nHost: h\r\nX: y\r\r\n\r\n", 400},
	{"CR in a name", "GET / HTTP/1.1\r\nHost: h\r\nX\rY: y\r\n\r\n", 400},
	{"NUL in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n", 400},
	{"NUL in a name", "GET / HTTP/1.1\r\nHost: h\r\nX\x00: a\r\n\r\n", 400},
	{"NUL in the target", "GET /a\x00b HTTP/1.1\r\nHost: h\r\n\r\n", 400},
	{"other control in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: \x1b[2J\r\n\r\n", 400},
	{"DEL in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: \x7f\r\n\r\n", 400},
	{"fold", "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", 400},
	{"fold with a tab", "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n\tb\r\n\r\n", 400},
	{"first field folded", "GET / HTTP/1.1\r\n Host: h\r\nHost: h\r\n\r\n", 400},
	{"name of nothing", "GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n", 400},
	{"no colon", "GET / HTTP/1.1\r\nHost: h\r\nGET / HTTP/1.1\r\n\r\n", 400},
	{"name with obs-text", "GET / HTTP/1.1\r\nHost: h\r\nX\xe4: y\r\n\r\n", 400},
	{"name in brackets", "GET / HTTP/1.1\r\nHost: h\r\n(X): y\r\n\r\n", 400},

	{"no host", "GET / HTTP/1.1\r\nX: y\r\n\r\n", 400},
	{"two hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", 400},
	{"two equal hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400},
	{"two hosts, absolute form", "GET http://h/ HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", 400},
	{"host with a path", "GET / HTTP/1.1\r\nHost: h/x\r\n\r\n", 400},
	{"host with a user", "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400},
	{"host list", "GET / HTTP/1.1\r\nHost: h, i\r\n\r\n", 400},
	{"host with a blank", "GET / HTTP/1.1\r\nHost: h i\r\n\r\n", 400},
	{"absolute form with a bad host", "GET http://h/ HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
	{"absolute form without host in it", "GET http:///x HTTP/1.1\r\nHost: h\r\n\r\n", 400},

	{"two blanks", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
	{"blank in the target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400},
	{"blank behind the version", "GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400},
	{"tabs for blanks", "GET\t/\tHTTP/1.1\r\nHost: h\r\n\r\n", 400},
	{"CR for a blank", "GET /\rHTTP/1.1\r\nHost: h\r\n\r\n", 400},
	{"no target", "GET HTTP/1.1\r\nHost: h\r\n\r\n", 400},
	{"relative target", "GET a/b HTTP/1.1\r\nHost: h\r\n\r\n", 400},
	{"asterisk for GET", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400},
	{"other scheme", "GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400},
	{"version with three parts", "GET / HTTP/1.1.1\r\nHost: h\r\n\r\n", 505},
	{"version with two digits", "GET / HTTP/1.10\r\nHost: h\r\n\r\n", 505},

	{"long target", "GET /" + strings.Repeat("a", 70<<10) + " HTTP/1.1\r\nHost: h\r\n\r\n", 414},
	{"long field", "GET / HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", 431},
	{"many fields", "GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("X: y\r\n", 300) + "\r\n", 431},
}

// badChunks are bodies of a chunked request that go wrong; of the request only what was sound may have been passed on, and
// not as complete.
var badChunks = []struct{ name, body string }{
	{"no digits", "\r\nabc\r\n0\r\n\r\n"},
	{"no hexadecimal digit", "g\r\nabc\r\n0\r\n\r\n"},
	{"0x", "0x3\r\nabc\r\n0\r\n\r\n"},
	{"plus sign", "+3\r\nabc\r\n0\r\n\r\n"},
	{"minus sign", "-3\r\nabc\r\n0\r\n\r\n"},
	{"blank before", " 3\r\nabc\r\n0\r\n\r\n"},
	{"blank behind", "3 \r\nabc\r\n0\r\n\r\n"},
	{"tab before the extension", "3\t;a\r\nabc\r\n0\r\n\r\n"},
	{"underscore", "0_3\r\nabc\r\n0\r\n\r\n"},
	{"overflow", "10000000000000003\r\nabc\r\n0\r\n\r\n"},
	{"overflow of int64", "ffffffffffffffff\r\nabc\r\n0\r\n\r\n"},
	{"many zeros", strings.Repeat("0", 20) + "3\r\nabc\r\n0\r\n\r\n"},
	{"bare LF behind the size", "3\nabc\r\n0\r\n\r\n"},
	{"bare CR behind the size", "3\rabc\r\n0\r\n\r\n"},
	{"bare LF behind the data", "3\r\nabc\n0\r\n\r\n"},
	{"bare LF in an extension", "3;a\nabc\r\n0\r\n\r\n"},
	{"bare CR in an extension", "3;a\rb\r\nabc\r\n0\r\n\r\n"},
	{"NUL in an extension", "3;\x00\r\nabc\r\n0\r\n\r\n"},
	{"long extension", "3;" + strings.Repeat("a", 20<<10) + "\r\nabc\r\n0\r\n\r\n"},
	{"data too long", "3\r\nabcd\r\n0\r\n\r\n"},
	{"data too short", "3\r\nab\r\n0\r\n\r\n"},
	{"last chunk ends in LF", "3\r\nabc\r\n0\n\r\n"},
	{"body ends in LF", "3\r\nabc\r\n0\r\n\n"},
	{"trailer ends in LF", "3\r\nabc\r\n0\r\nX: y\n\r\n"},
	{"trailer folded", "3\r\nabc\r\n0\r\nX: y\r\n z\r\n\r\n"},
	{"trailer without a colon", "3\r\nabc\r\n0\r\nGET / HTTP/1.1\r\n\r\n"},
	{"blank before the colon of a trailer", "3\r\nabc\r\n0\r\nX : y\r\n\r\n"},
	{"long trailers", "3\r\nabc\r\n0\r\n" + strings.Repeat("X: yyyyyyyyyyyyyyyyyyyyyyyy\r\n", 4<<10) + "\r\n"},
	{"many trailers", "3\r\nabc\r\n0\r\n" + strings.Repeat("X: y\r\n", 300) + "\r\n"},
}

// sink is a server that keeps every byte, and never answers.
type sink struct {
	addr  string
	mu    sync.Mutex
	conns []*sunk
}

// sunk is a connection to a sink.
type sunk struct {
	got   bytes.Buffer
	ended bool
}

func newSink(t testing.TB) *sink {
	s := &sink{}
	s.addr = tcptest.Serve(t, func(c net.Conn) {
		k := &sunk{}
		s.mu.Lock()
		s.conns = append(s.conns, k)
		s.mu.Unlock()
		buf := make([]byte, 32<<10)
		for !k.ended {
			n, err := c.Read(buf)
			s.mu.Lock()
			k.got.Write(buf[:n])
			k.ended = err != nil
			s.mu.Unlock()
		}
	})
	return s
}

// received is what came on each connection that got something. It waits until these have ended.
func (s *sink) received(t *testing.T) []string {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		var out []string
		open := 0
		s.mu.Lock()
		for _, k := range s.conns {
			if k.got.Len() > 0 {
				out = append(out, k.got.String())
				if !k.ended {
					open++
				}
			}
		}
		s.mu.Unlock()
		if open == 0 {
			return out
		}
		if time.Now().After(deadline) {
			t.Errorf("%d connections stay open with half a request: %q", open, out)
			return out
		}
		<-tick.C
	}
}

// ask sends bytes, and reads until the other side has finished. It returns the responses.
func ask(t *testing.T, addr string, parts ...string) []*message {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	for _, p := range parts {
		if _, err := io.WriteString(c, p); err != nil {
			break // it may have heard enough
		}
	}
	r := bufio.NewReader(c)
	var out []*message
	for {
		m, err := readResponse(r, "")
		if m != nil && err == nil {
			out = append(out, m)
			continue
		}
		if err != io.EOF {
			t.Errorf("after %d responses: %v", len(out), err)
		}
		return out
	}
}

// fronts are the listeners that take HTTP/1.1, before servers that only keep what they get.
func fronts(t *testing.T, h1, h2 string) map[string]string {
	out := map[string]string{}
	for _, p := range paths(t, h1, h2) {
		if p.in == "http1" {
			out[p.String()] = p.addr
		}
	}
	out["detect"] = startProxy(t, config{"address": "127.0.0.1:0", "upstream": h1}).addrs[0]
	return out
}

// TestAmbiguousHeads: one request in never becomes two.
func TestAmbiguousHeads(t *testing.T) {
	b := newBackend(t)
	s := newSink(t)
	for name, addr := range fronts(t, s.addr, b.h2) {
		for _, tt := range ambiguous {
			for i, parts := range [][]string{{tt.request + smuggled}, {tt.request, smuggled}} {
				checkRefusal(t, fmt.Sprintf("%s: %s (%d)", name, tt.name, i), ask(t, addr, parts...), tt.status)
			}
		}
	}
	if got := s.received(t); len(got) > 0 {
		t.Errorf("the server received %q", got)
	}
	if strange := b.uninvited(); len(strange) > 0 {
		t.Errorf("the HTTP/2 server received %v", strange)
	}
}

func checkRefusal(t *testing.T, name string, got []*message, status int) {
	t.Helper()
	switch {
	case len(got) != 1:
		t.Errorf("%s: %d responses: %v", name, len(got), got)
	case got[0].line != fmt.Sprint(status):
		t.Errorf("%s: %s instead of %d: %s", name, got[0].line, status, got[0].body)
	case got[0].get("connection") != "close" || got[0].get("conduit-reason") == "":
		t.Errorf("%s: %v", name, got[0])
	}
}

// TestBadChunks has chunked bodies that go wrong in the middle of a request.
func TestBadChunks(t *testing.T) {
	b := newBackend(t)
	s := newSink(t)
	for name, addr := range fronts(t, s.addr, b.h2) {
		for _, tt := range badChunks {
			status := 400
			if strings.Contains(tt.name, "trailers") {
				status = 431
			}
			head := "POST / HTTP/1.1\r\nHost: h\r\nX-Way: " + name + ", " + tt.name + "\r\nTransfer-Encoding: chunked\r\n\r\n"
			got := ask(t, addr, head+tt.body+smuggled)
			if strings.Contains(name, "to http2") && len(got) == 1 && got[0].line == "599" {
				continue // that server answers at once, without the body
			}
			checkRefusal(t, name+": "+tt.name, got, status)
		}
	}
	for _, got := range s.received(t) {
		if strings.Contains(got, "\r\n0\r\n") || strings.Contains(got, "smuggled") || strings.Count(got, "HTTP/1.1") > 1 {
			t.Errorf("the server received %q", got)
		}
	}
	for _, m := range b.uninvited() {
		if strings.Contains(m, "smuggled") {
			t.Errorf("the HTTP/2 server received %s", m)
		}
	}
}
