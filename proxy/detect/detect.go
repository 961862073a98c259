// Package detect tells from the first bytes of a connection what it speaks, and remembers it per destination.
package detect

import (
	"bytes"
	"strings"
)

// Verdict is what the bytes say.
type Verdict uint8

// The verdicts.
const (
	More   Verdict = iota // too few bytes to tell
	HTTP1                 // an HTTP/1.x request
	HTTP2                 // HTTP/2 with prior knowledge
	Opaque                // anything else, TLS included
)

// String is the verdict as logs have it.
func (v Verdict) String() string { return [...]string{"more", "http1", "http2", "opaque"}[v] }

// preface opens every HTTP/2 connection (RFC 9113, 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	// maxMethod bounds the method of a request line; the longest registered one (UPDATEREDIRECTREF) has 17 bytes.
	maxMethod = 24
	// maxLine bounds how much of a request line is looked at before it is taken for something else.
	maxLine = 8 << 10
)

// methods are those of which the first bytes suffice, followed by a space and the begin of a request target.
var methods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"}

// Bytes judges p, everything that the client has sent so far. It is pure, and its verdict does not depend on how the
// bytes were split: once it is not More, more bytes do not change it, except that an HTTP/1 request line without its
// end is believed on the strength of a well-known method and target.
//
// A line that begins with a token and ends with a version HTTP/1.x is HTTP, however wrong it may be in between: the
// codec answers 400, so that nobody reaches a server as bytes with a request that a lenient server would take for one.
// Other methods than the well-known need that whole line. CONNECT is opaque: a client of a forward proxy asks for a
// tunnel through that proxy, of which only the bytes concern the mesh.
func Bytes(p []byte) Verdict {
	if len(p) == 0 {
		return More
	}
	if n := min(len(p), len(preface)); string(p[:n]) == preface[:n] && n > 2 {
		if n == len(preface) {
			return HTTP2
		}
		return More
	}
	return line(p)
}

// line judges an HTTP/1 request line (RFC 9112, 3).
func line(p []byte) Verdict {
	sep := bytes.IndexFunc(p[:min(len(p), maxMethod+1)], space)
	method := string(p[:min(len(p), maxMethod+1)])
	if sep >= 0 {
		method = method[:sep]
	}
	switch {
	case sep == 0 || len(method) > maxMethod || !token(method):
		return Opaque
	case sep < 0:
		return More
	case method == "CONNECT":
		return Opaque
	}
	rest, _, ended := bytes.Cut(p[sep:], []byte("\n"))
	known := len(rest) > 0 && rest[0] == ' ' && wellKnown(method, rest[1:])
	switch {
	case !known && bytes.ContainsFunc(rest, control):
		return Opaque
	case ended:
		return whole(rest)
	case known:
		return HTTP1
	case len(p) > maxLine:
		return Opaque
	}
	return More
}

// whole judges a line after its method: the last word is the version.
func whole(rest []byte) Verdict {
	words := bytes.FieldsFunc(rest, space)
	if len(words) == 0 || !bytes.HasPrefix(words[len(words)-1], []byte("HTTP/1.")) {
		return Opaque
	}
	return HTTP1
}

// space reports whether a lenient server may split a request line at c (RFC 9112, 3).
func space(c rune) bool { return c == ' ' || '\t' <= c && c <= '\r' }

func control(c rune) bool { return c < ' ' && !space(c) || c == 0x7f }

// wellKnown accepts a well-known method with the begin of a target that belongs to it (RFC 9112, 3.2): the forms
// origin ("/"), absolute ("http") and asterisk (OPTIONS).
func wellKnown(method string, target []byte) bool {
	for _, m := range methods {
		if m != method {
			continue
		}
		switch {
		case len(target) == 0:
			return false
		case target[0] == '/':
			return true
		case target[0] == '*':
			return method == "OPTIONS"
		default:
			return bytes.HasPrefix(target, []byte("http://")) || bytes.HasPrefix(target, []byte("https://"))
		}
	}
	return false
}

// token reports whether s is a token, as every method is (RFC 9110, 5.6.2).
func token(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return true
}
