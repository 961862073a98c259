package differential

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/tests/tcptest"
)

// caseField tells the backend which exchange a request belongs to.
const caseField = "x-case"

// backend is the server at the end: it keeps what it received of every request, as it was, and answers what the
// exchange's author wants.
type backend struct {
	h1, h2 string // addresses

	mu      sync.Mutex
	cases   map[string]*run
	strange []string // requests that nobody has announced
}

// run is one exchange on its way.
type run struct {
	res  response
	seen chan *message
}

func newBackend(t testing.TB) *backend {
	b := &backend{cases: map[string]*run{}}
	b.h1 = tcptest.Serve(t, b.serve1)
	b.h2 = tcptest.Serve(t, b.serve2)
	return b
}

// expect announces an exchange.
func (b *backend) expect(id string, res response) *run {
	r := &run{res: res, seen: make(chan *message, 8)}
	b.mu.Lock()
	b.cases[id] = r
	b.mu.Unlock()
	return r
}

// forget ends an exchange. A pipelined request may still arrive that its client has not waited for.
func (b *backend) forget(id string) {
	b.mu.Lock()
	b.cases[id] = nil
	b.mu.Unlock()
}

func (b *backend) find(m *message) *run {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, known := b.cases[m.get(caseField)]
	if !known {
		b.strange = append(b.strange, m.String())
	}
	return r
}

// uninvited is what came that nobody has announced, since the last call.
func (b *backend) uninvited() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.strange
	b.strange = nil
	return s
}

// serve1 is an HTTP/1.1 server.
func (b *backend) serve1(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		line, fs, err := readHead(r)
		if err != nil {
			return
		}
		m, minor := readRequestLine(line, fs)
		method, _, _ := strings.Cut(m.line, " ")
		x := b.find(m)
		if x == nil {
			io.WriteString(c, "HTTP/1.1 599 Unknown\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			linger(c)
			return
		}
		if minor > 0 && m.get("expect") != "" && len(x.res.interims) > 0 {
			early := response{interims: x.res.interims}
			x.res.interims = nil
			if !early.continues(c) {
				return
			}
		}
		if !x.res.early {
			err = readBody(r, m, false)
			x.seen <- m
			if err != nil {
				return
			}
		}
		options := named(fs)
		keep := !slices.Contains(options, "close") && (minor > 0 || slices.Contains(options, "keep-alive"))
		again, err := x.res.write1(c, method, keep, minor)
		if x.res.early {
			x.seen <- m
		}
		if err != nil {
			return
		}
		if !again {
			linger(c)
			return
		}
	}
}

// continues sends the interim responses ahead of the final one.
func (r *response) continues(w io.Writer) bool {
	for _, i := range r.interims {
		if _, err := fmt.Fprintf(w, "HTTP/1.1 %d Interim\r\n\r\n", i.status); err != nil {
			return false
		}
	}
	return true
}

// linger reads on, so that a close is not a reset that overtakes the response.
func linger(c net.Conn) {
	c.(*net.TCPConn).CloseWrite()
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	io.Copy(io.Discard, c)
}

// readRequestLine puts a request line into the form in which messages are compared.
func readRequestLine(line string, fs []field) (m *message, minor int) {
	m = &message{fields: fs}
	parts := strings.SplitN(line, " ", 3)
	if len(parts) != 3 {
		m.line = "malformed " + line
		return m, 1
	}
	method, target := parts[0], parts[1]
	if parts[2] == "HTTP/1.0" {
		minor = 0
	} else {
		minor = 1
	}
	authority, scheme, form := m.get("host"), "http", "origin"
	if s, rest, ok := strings.Cut(target, "://"); ok && target[0] != '/' {
		scheme, form = strings.ToLower(s), "absolute"
		i := strings.IndexAny(rest, "/?#")
		if i < 0 {
			i = len(rest)
		}
		authority, target = rest[:i], rest[i:]
		if target == "" && method == "OPTIONS" {
			target = "*"
		} else if target == "" || target[0] != '/' {
			target = "/" + target
		}
	}
	m.line = fmt.Sprintf("%s %s %q %q %s", method, scheme, authority, target, form)
	return m, minor
}

// serve2 is an HTTP/2 server.
func (b *backend) serve2(c net.Conn) {
	h := newH2(c, false, b.stream)
	if h.start() == nil {
		h.ended()
	}
}

// stream serves one request.
func (b *backend) stream(s *h2stream) {
	defer func() {
		s.c.mu.Lock()
		delete(s.c.streams, s.id)
		s.c.mu.Unlock()
	}()
	s.c.mu.Lock()
	p, rest := split(s.heads[0])
	s.c.mu.Unlock()
	m := &message{fields: rest}
	m.line = fmt.Sprintf("%s %s %q %q origin", p[":method"], p[":scheme"], p[":authority"], p[":path"])
	x := b.find(m)
	if x == nil {
		s.headers([]field{{":status", "599"}}, true)
		return
	}
	if m.get("expect") != "" {
		for _, i := range x.res.interims {
			s.headers([]field{{":status", fmt.Sprint(i.status)}}, false)
		}
		x.res.interims = nil
	}
	if !x.res.early {
		s.until(func() bool { return s.ended })
		s.c.mu.Lock()
		m.body, m.end = s.body, "cut"
		if s.ended {
			m.end = whole
		}
		if len(s.heads) > 1 {
			m.trailers = s.heads[1]
		}
		s.c.mu.Unlock()
	}
	x.seen <- m
	if m.end != "cut" {
		x.res.write2(s, p[":method"])
	}
}
