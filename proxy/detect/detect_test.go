package detect

import (
	"net/netip"
	"strings"
	"testing"
)

func TestBytes(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Verdict
	}{
		{"nothing", "", More},
		{"get", "GET / HTTP/1.1\r\n", HTTP1},
		{"get, line not ended", "GET /very/long", HTTP1},
		{"half a method", "GE", More},
		{"method alone", "GET", More},
		{"method and space", "GET ", More},
		{"absolute form", "GET http://x/", HTTP1},
		{"absolute form begun", "GET htt", More},
		{"asterisk", "OPTIONS *", HTTP1},
		{"asterisk of GET", "GET * HTTP/1.1", More},
		{"connect begun", "CONNECT ", Opaque},
		{"connect", "CONNECT a.example:443 HTTP/1.1\r\n", Opaque},
		{"extension, whole line", "PROPFIND /dav HTTP/1.1\r\n", HTTP1},
		{"extension, line begun", "PROPFIND /dav", More},
		{"extension with dash", "M-SEARCH * HTTP/1.1\r\n", HTTP1},
		{"http 1.0, bare newline", "GET / HTTP/1.0\n", HTTP1},
		{"http 0.9", "GET /\r\n", Opaque},
		{"redis inline", "GET key\r\n", Opaque},
		{"redis inline, begun", "GET key", More},
		{"redis array", "*1\r\n$4\r\nPING\r\n", Opaque},
		{"redis ping inline", "PING\r\n", Opaque},
		{"memcached", "get key\r\n", Opaque},
		{"smtp client", "EHLO host\r\n", Opaque},
		{"imap", "a1 LOGIN\r\n", Opaque},
		{"nats", "CONNECT {\"verbose\":false}\r\n", Opaque},
		{"two spaces", "GET  / HTTP/1.1\r\n", HTTP1},
		{"two spaces begun", "GET  /", More},
		{"space in target", "GET /a b HTTP/1.1\r\n", HTTP1},
		{"space at end", "GET / HTTP/1.1 \r\n", HTTP1},
		{"tabs", "GET\t/\tHTTP/1.1\n", HTTP1},
		{"carriage returns", "GET /\rHTTP/1.1\r\n", HTTP1},
		{"no target", "GET HTTP/1.1\r\n", HTTP1},
		{"odd version", "GET / HTTP/1.1.1\r\n", HTTP1},
		{"control byte in known target", "GET /a\x01b HTTP/1.1\r\n", HTTP1},
		{"lower case", "get / HTTP/1.1\r\n", HTTP1},
		{"lower case begun", "get /", More},
		{"odd token", "!#$ x HTTP/1.0\r\n", HTTP1},
		{"lone line end", "GET\nx HTTP/1.1\r\n", Opaque},
		{"no token", "G(T / HTTP/1.1\r\n", Opaque},
		{"http 2 in a line", "GET / HTTP/2.0\r\n", Opaque},
		{"rtsp", "OPTIONS rtsp://x RTSP/1.0\r\n", Opaque},
		{"sip", "INVITE sip:bob@x SIP/2.0\r\n", Opaque},
		{"preface begun", "PRI * HT", More},
		{"one letter of both", "P", More},
		{"two letters of both", "PR", More},
		{"preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP2},
		{"preface and frames", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00", HTTP2},
		{"preface spoilt", "PRI * HTTP/2.0\r\n\r\nXX", Opaque},
		{"put", "PUT /x", HTTP1},
		{"tls", "\x16\x03\x01\x02\x00\x01", Opaque},
		{"tls, one byte", "\x16", Opaque},
		{"postgres", "\x00\x00\x00\x08\x04\xd2\x16\x2f", Opaque},
		{"ssh", "SSH-2.0-OpenSSH_9.6\r\n", Opaque},
		{"control byte in target", "FOO a\x01b", Opaque},
		{"space first", " GET / HTTP/1.1\r\n", Opaque},
		{"endless token", strings.Repeat("A", 40), Opaque},
		{"endless line", "FOO " + strings.Repeat("a", 9000), Opaque},
	} {
		if got := Bytes([]byte(c.in)); got != c.want {
			t.Errorf("%s: %q gives %v, want %v", c.name, c.in, got, c.want)
		}
	}
}

// However a request arrives in pieces, the judgement passes through More only and ends the same.
func TestBytesDoesNotWaver(t *testing.T) {
	for in, want := range map[string]Verdict{
		"POST /x?y=1 HTTP/1.1\r\nHost: a\r\n\r\n":      HTTP1,
		"REPORT /x HTTP/1.1\r\nHost: a\r\n\r\n":        HTTP1,
		"get  /x\ty HTTP/1.1 \r\nHost: a\r\n\r\n":      HTTP1,
		"GET \x01x HTTP/1.1\r\n":                       Opaque,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00": HTTP2,
		"GET key\r\nGET other\r\n":                     Opaque,
		"SSH-2.0-x\r\n":                                Opaque,
	} {
		decided := More
		for n := range len(in) + 1 {
			v := Bytes([]byte(in[:n]))
			if decided != More && v != decided {
				t.Fatalf("%q: %v after %d bytes, was %v", in, v, n, decided)
			}
			decided = v
		}
		if decided != want {
			t.Errorf("%q: %v, want %v", in, decided, want)
		}
	}
}

func FuzzBytes(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > maxLine+maxMethod+2 && Bytes(p) == More {
			t.Errorf("still undecided after %d bytes", len(p))
		}
	})
}

func TestMemoryForgetsTheLeastRecent(t *testing.T) {
	a, b, c := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.1:2"), netip.MustParseAddrPort("10.0.0.1:3")
	m := NewMemory(2)
	if m.Get(a) != More {
		t.Error("knows what it was not told")
	}
	m.Put(a, HTTP1)
	m.Put(b, Opaque)
	m.Get(a)
	m.Put(c, HTTP2)
	if m.Len() != 2 || m.Get(b) != More || m.Get(a) != HTTP1 || m.Get(c) != HTTP2 {
		t.Errorf("len %d, a %v, b %v, c %v", m.Len(), m.Get(a), m.Get(b), m.Get(c))
	}
	m.Put(a, Opaque)
	if m.Get(a) != Opaque || m.Len() != 2 {
		t.Error("the newer verdict must replace the older")
	}
}
