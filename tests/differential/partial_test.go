package differential

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"conduit.io/conduit/tests/tcptest"
)

// ways are direct and all the paths to b.
func ways(t *testing.T, b *backend) []path {
	return append(paths(t, b.h1, b.h2), path{in: "http1", out: "http1", addr: b.h1}, path{in: "http2", out: "http2", addr: b.h2})
}

// TestExpectationFailed has clients that wait to be told to go on, and are told not to. They never send the body.
func TestExpectationFailed(t *testing.T) {
	b := newBackend(t)
	for _, p := range ways(t, b) {
		for _, body := range []string{"", "no"} {
			id := fmt.Sprint(lastCase.Add(1))
			b.expect(id, response{status: 417, phrase: "Expectation Failed", framing: length, body: []byte(body), early: true})
			req := request{method: "PUT", scheme: "http", authority: "h", path: "/", minor: 1, framing: length, body: make([]byte, 100),
				fields: []field{{"X-Case", id}, {"Expect", "100-continue"}}}
			c := dial(t, p.addr)
			if p.in == "http2" {
				h := newH2(c, true, nil)
				if err := h.start(); err != nil {
					t.Fatal(err)
				}
				s := h.open(req.head2(), false)
				if m := s.response(); m == nil || m.line != "417" || string(m.body) != body || m.end != whole {
					t.Errorf("%s: %v", p, m)
				}
				if !s.until(func() bool { return s.reset }) || s.code != http2.ErrCodeNo {
					t.Errorf("%s: the client is not told to keep its body: reset %v, code %v", p, s.reset, s.code)
				}
				continue
			}
			c.Write(req.head1())
			r := bufio.NewReader(c)
			m, err := readResponse(r, "PUT")
			if err != nil || m.line != "417" || string(m.body) != body || !slices.Contains(named(m.fields), "close") {
				t.Errorf("%s: %v, %v", p, m, err) // without close, another request would be taken for the body
			}
			if _, err := r.ReadByte(); err != io.EOF {
				t.Errorf("%s: the connection goes on: %v", p, err)
			}
		}
	}
}

// TestClientDoesNotWait sends the body although nobody has asked for it.
func TestClientDoesNotWait(t *testing.T) {
	b := newBackend(t)
	for _, p := range ways(t, b) {
		x := exchange{
			req: request{method: "POST", scheme: "http", authority: "h", path: "/", minor: 1, framing: length, body: []byte("body"), fields: []field{{"Expect", "100-continue"}}},
			res: response{status: 200, framing: length, body: []byte("ok")},
		}
		out, err := play(b, p.in, p.addr, []exchange{x})
		if err != nil || string(out[0].seen.body) != "body" || string(out[0].got.body) != "ok" {
			t.Errorf("%s: %v, %v", p, out, err)
		}
	}
}

// refusing is a server that answers 413 to the head of a request, reads no more, and closes: with hard by a reset.
func refusing(hard bool) func(net.Conn) {
	return func(c net.Conn) {
		if _, _, err := readHead(bufio.NewReader(c)); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large")
		if !hard {
			linger(c)
		}
	}
}

// TestEarlyResponse has servers that answer while a large body is on its way.
func TestEarlyResponse(t *testing.T) {
	b := newBackend(t)
	for _, hard := range []bool{false, true} {
		for _, p := range paths(t, tcptest.Serve(t, refusing(hard)), b.h2) {
			if p.out != "http1" {
				continue
			}
			for _, f := range []framing{length, chunked} {
				req := request{method: "POST", scheme: "http", authority: "h", path: "/", minor: 1, framing: f, body: make([]byte, 8<<20), cuts: []int{100 << 10}}
				out, err := upload(t, p, &req)
				if err != nil || out.line != "413" || string(out.body) != "too large" || out.end != whole {
					t.Errorf("%s, hard %v: %v, %v", p, hard, out, err)
				}
			}
		}
	}
}

// upload sends a request while it reads the response.
func upload(t *testing.T, p path, req *request) (*message, error) {
	c := dial(t, p.addr)
	defer c.Close()
	if p.in == "http1" {
		go c.Write(append(req.head1(), req.body1()...))
		return readResponse(bufio.NewReader(c), req.method)
	}
	h := newH2(c, true, nil)
	if err := h.start(); err != nil {
		return nil, err
	}
	s := h.open(req.head2(), false)
	go s.finish(req.body, req.cuts, nil)
	m := s.response()
	if m == nil {
		return nil, s.fate()
	}
	return m, nil
}

// TestCutRequest: a request of which the end is missing is never taken for a whole one.
func TestCutRequest(t *testing.T) {
	b := newBackend(t)
	for _, p := range ways(t, b) {
		for _, f := range []framing{length, chunked} {
			for _, how := range []string{"FIN", "RST"} {
				id := fmt.Sprint(lastCase.Add(1))
				x := b.expect(id, response{status: 200, framing: length, interims: []interim{{status: 100}}})
				req := request{method: "POST", scheme: "http", authority: "h", path: "/", minor: 1, framing: f, body: make([]byte, 1000),
					fields: []field{{"X-Case", id}, {"Expect", "100-continue"}}}
				cutOff(t, p, &req, how)
				select {
				case m := <-x.seen:
					if m.end == whole {
						t.Errorf("%s, framing %d, %s: the server received %v", p, f, how, m)
					}
				case <-time.After(patience):
					t.Errorf("%s, framing %d, %s: the server was told nothing", p, f, how)
				}
			}
		}
	}
}

// cutOff sends most of a request, the body once the server has asked for it, and ends.
func cutOff(t *testing.T, p path, req *request, how string) {
	t.Helper()
	c := dial(t, p.addr)
	if p.in == "http2" {
		h := newH2(c, true, nil)
		if err := h.start(); err != nil {
			t.Fatal(err)
		}
		s := h.open(req.head2(), false)
		s.until(func() bool { return len(s.heads) > 0 })
		s.data(req.body[:900], false)
		if how == "RST" {
			s.cancel(http2.ErrCodeCancel)
			return
		}
	} else {
		c.Write(req.head1())
		if _, err := bufio.NewReader(c).ReadByte(); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		body := req.body1()
		c.Write(body[:len(body)-5])
	}
	if how == "RST" {
		c.SetLinger(0)
	}
	c.Close()
}

// TestFramingTrailers: what frames or routes a message has no place behind it in HTTP/1.1, where some servers merge
// trailers into the head.
func TestFramingTrailers(t *testing.T) {
	b := newBackend(t)
	var bad []field
	for _, name := range framingTrailers {
		bad = append(bad, field{name, "5"})
	}
	bad = append(bad, field{"X-Sum", "1"})
	for _, p := range paths(t, b.h1, b.h2) {
		x := exchange{
			req: request{method: "POST", scheme: "http", authority: "h", path: "/", minor: 1, framing: chunked, body: []byte("body"), trailers: bad},
			res: response{status: 200, framing: chunked, body: []byte("ok"), trailers: bad},
		}
		out, err := play(b, p.in, p.addr, []exchange{x})
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		for to, fs := range map[string][]field{p.out: out[0].seen.trailers, p.in: out[0].got.trailers} {
			if to == "http1" && (len(fs) != 1 || !strings.EqualFold(fs[0].name, "x-sum")) {
				t.Errorf("%s: HTTP/1.1 got the trailers%s", p, show(fs))
			}
		}
	}
}

// TestLargeHeads are just below the limits, at which two proxies must not be smaller than one.
func TestLargeHeads(t *testing.T) {
	b := newBackend(t)
	for _, size := range []struct{ fields, bytes int }{{1, 60 << 10}, {240, 200}, {240, 10}, {6, 10 << 10}} {
		var fs []field
		for i := range size.fields {
			fs = append(fs, field{fmt.Sprintf("X-Field-%d", i), strings.Repeat("v", size.bytes)})
		}
		for _, p := range paths(t, b.h1, b.h2) {
			x := exchange{
				req: request{method: "GET", scheme: "http", authority: "h", path: "/", minor: 1, fields: fs},
				res: response{status: 200, framing: length, body: []byte("ok"), fields: fs},
			}
			out, err := play(b, p.in, p.addr, []exchange{x})
			if err != nil || len(out[0].seen.fields) < size.fields || len(out[0].got.fields) < size.fields || !bytes.Equal(out[0].got.body, []byte("ok")) {
				t.Errorf("%s, %d fields of %d bytes: %v", p, size.fields, size.bytes, err)
			}
		}
	}
}
