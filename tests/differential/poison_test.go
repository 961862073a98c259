package differential

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"conduit.io/conduit/tests/tcptest"
)

// poison is a response that nobody may get: it comes behind, or within, one that nobody can be sure where to end.
const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"

// badResponses are heads that must not be passed on.
var badResponses = []struct{ name, response string }{
	{"length and coding", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\n"},
	{"two equal lengths", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"},
	{"a list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 0, 0\r\n\r\n"},
	{"signed length", "HTTP/1.1 200 OK\r\nContent-Length: +0\r\n\r\n"},
	{"length that overflows", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n"},
	{"hidden length", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"},
	{"unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
	{"two codings", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"coding in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n"},
	{"bare CR", "HTTP/1.1 200 OK\r\nX: a\rContent-Length: 0\r\n\r\n"},
	{"NUL", "HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 0\r\n\r\n"},
	{"fold", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n"},
	{"no colon", "HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n"},
	{"status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"},
	{"status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"},
	{"status below 100", "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"},
	{"control in the phrase", "HTTP/1.1 200 O\x01K\r\nContent-Length: 0\r\n\r\n"},
	{"switching protocols unasked", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"},
	{"HTTP/2", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"},
	{"no HTTP", "220 mail.example ESMTP\r\n"},
	{"long field", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 70<<10) + "\r\n\r\n"},
	{"many interim responses", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100)},
}

// badBodies are responses of which the beginning is sound.
var badBodies = []struct{ method, name, response, body, end string }{
	{"POST", "bad chunk size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0x1\r\n", "abc", "cut"},
	{"POST", "bare LF behind the size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\nd", "abc", "cut"},
	{"POST", "bad trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX : y\r\n\r\n", "abc", "cut"},
	{"POST", "bytes behind the length", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "abc", whole},
	{"POST", "bytes behind the last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc", whole},
	{"POST", "bytes behind 204", "HTTP/1.1 204 No Content\r\n\r\n", "", whole},
	{"POST", "bytes behind 204 with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 46\r\n\r\n", "", whole},
	{"POST", "bytes behind 304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 46\r\n\r\n", "", whole},
	{"HEAD", "bytes behind HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 46\r\n\r\n", "", whole},
	{"HEAD", "chunks behind HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2e\r\n", "", whole},
}

// poisoner is a server that answers each connection's first request with what it is told, and the poison behind it; all
// others with 200.
type poisoner struct {
	addr string
	mu   sync.Mutex
	next string
	open int // connections that were given poison and have not ended
}

func newPoisoner(t *testing.T) *poisoner {
	p := &poisoner{}
	p.addr = tcptest.Serve(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			if _, _, err := readHead(r); err != nil {
				return
			}
			p.mu.Lock()
			answer := p.next
			p.next = ""
			if answer != "" {
				p.open++
			}
			p.mu.Unlock()
			if answer == "" {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean")
				continue
			}
			io.WriteString(c, answer+poison)
			io.Copy(io.Discard, r) // a connection that is used again is not answered
			p.mu.Lock()
			p.open--
			p.mu.Unlock()
			return
		}
	})
	return p
}

func (p *poisoner) set(answer string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = answer
}

// closed waits until every poisoned connection has ended.
func (p *poisoner) closed() bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		p.mu.Lock()
		n := p.open
		p.mu.Unlock()
		if n == 0 {
			return true
		}
	}
	return false
}

// twice sends a request with method, and a GET behind it; on one connection where the first response leaves it open. It
// returns both responses; between is called in between.
func twice(p path, method string, between func()) (first, second *message, err error) {
	req := request{method: method, scheme: "http", authority: "h", path: "/", minor: 1}
	again := request{method: "GET", scheme: "http", authority: "h", path: "/again", minor: 1}
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if p.in == "http2" {
		h := newH2(c, true, nil)
		if err := h.start(); err != nil {
			return nil, nil, err
		}
		if first = h.open(req.head2(), true).response(); first == nil {
			return nil, nil, fmt.Errorf("no response")
		}
		between()
		return first, h.open(again.head2(), true).response(), nil
	}
	r := bufio.NewReader(c)
	c.Write(req.head1())
	first, err = readResponse(r, method)
	if first == nil {
		return nil, nil, err
	}
	if first.end != whole {
		if rest, _ := io.ReadAll(r); len(rest) > 0 {
			return nil, nil, fmt.Errorf("behind a broken response: %q", rest)
		}
		return first, nil, nil
	}
	between()
	c.Write(again.head1())
	second, err = readResponse(r, "GET")
	return first, second, err
}

// TestBadResponses: one response in never becomes two, and nobody gets another's.
func TestBadResponses(t *testing.T) {
	b := newBackend(t)
	up := newPoisoner(t)
	for _, p := range paths(t, up.addr, b.h2) {
		if p.out != "http1" {
			continue
		}
		for _, tt := range badResponses {
			up.set(tt.response)
			first, second, err := twice(p, "POST", func() {})
			if err != nil || first.line != "502" || first.get("conduit-reason") != "upstream-protocol" || second == nil || string(second.body) != "clean" {
				t.Errorf("%s: %s: %v\n%v\n%v", p, tt.name, err, first, second)
			}
			if !up.closed() {
				t.Errorf("%s: %s: the connection to the server stays open", p, tt.name)
			}
		}
		for _, tt := range badBodies {
			up.set(tt.response)
			first, second, err := twice(p, tt.method, func() {})
			if err != nil || string(first.body) != tt.body || first.end != tt.end || second != nil && string(second.body) != "clean" {
				t.Errorf("%s: %s: %v\n%v\n%v", p, tt.name, err, first, second)
			}
			if (second == nil) != (tt.end == "cut" && p.in == "http1") {
				t.Errorf("%s: %s: the next response is %v", p, tt.name, second)
			}
			if !up.closed() {
				t.Errorf("%s: %s: the connection to the server stays open", p, tt.name)
			}
		}
	}
}

// chatty is a connection to a server that may speak unasked.
type chatty struct {
	net.Conn
	spoken atomic.Bool
}

// TestUnaskedResponse has a server that speaks again on a connection that is idle.
func TestUnaskedResponse(t *testing.T) {
	b := newBackend(t)
	used := make(chan *chatty, 16)
	addr := tcptest.Serve(t, func(c net.Conn) {
		k := &chatty{Conn: c}
		for r := bufio.NewReader(c); ; {
			line, _, err := readHead(r)
			if err != nil {
				return
			}
			if k.spoken.Load() {
				t.Errorf("%q came on a connection on which the server had spoken unasked", line)
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean")
			used <- k
		}
	})
	for _, p := range paths(t, addr, b.h2) {
		if p.out != "http1" {
			continue
		}
		speak := func() {
			k := <-used
			k.spoken.Store(true)
			io.WriteString(k, poison)
			k.SetReadDeadline(time.Now().Add(patience))
			for deadline := time.Now().Add(patience); connected(k) && time.Now().Before(deadline); {
				runtime.Gosched()
			}
		}
		first, second, err := twice(p, "POST", speak)
		if err != nil || string(first.body) != "clean" || second == nil || string(second.body) != "clean" {
			t.Errorf("%s: %v\n%v\n%v", p, err, first, second)
		}
		<-used
	}
}

// connected reports whether the other side still holds it open.
func connected(k *chatty) bool {
	info := unix.TCPInfo{}
	raw, err := k.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return false
	}
	err2 := raw.Control(func(fd uintptr) {
		var i *unix.TCPInfo
		if i, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			info = *i
		}
	})
	return err == nil && err2 == nil && info.State == unix.BPF_TCP_ESTABLISHED
}
