// Package detect tells from the first bytes of a connection what it speaks, and remembers it per destination.
package detect

import "bytes"

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
// The check is conservative: a request in HTTP clothes that is passed on as bytes loses metrics, but a byte protocol
// taken for HTTP breaks. Other methods than the well-known need a whole request line with its HTTP version. CONNECT is
// opaque: a client of a forward proxy asks for a tunnel through that proxy, of which only the bytes concern the mesh.
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
	sp := bytes.IndexByte(p[:min(len(p), maxMethod+1)], ' ')
	if sp == 0 {
		return Opaque
	}
	token := p[:max(sp, 0)]
	if sp < 0 {
		token = p
	}
	for _, c := range token {
		if !methodByte(c) {
			return Opaque
		}
	}
	if string(token) == "CONNECT" && sp > 0 {
		return Opaque
	}
	if sp < 0 {
		if len(p) > maxMethod {
			return Opaque
		}
		return More
	}
	if end := bytes.IndexByte(p, '\n'); end >= 0 {
		return whole(p[sp+1 : end])
	}
	for _, c := range p[sp+1:] {
		if c <= ' ' && c != ' ' && c != '\r' || c == 0x7f {
			return Opaque
		}
	}
	switch {
	case wellKnown(string(token), p[sp+1:]):
		return HTTP1
	case len(p) > maxLine:
		return Opaque
	}
	return More
}

// whole judges the rest of a request line after the method: a target without spaces, and the version.
func whole(rest []byte) Verdict {
	rest = bytes.TrimSuffix(rest, []byte("\r"))
	target, version, ok := bytes.Cut(rest, []byte(" "))
	if !ok || len(target) == 0 || len(version) != len("HTTP/1.1") || !bytes.HasPrefix(version, []byte("HTTP/1.")) {
		return Opaque
	}
	return HTTP1
}

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

// methodByte reports whether c may stand in a method. RFC 9110 allows any token; upper-case letters, digits, dash and
// underscore are what is registered or seen, and lower case is what memcached and the like begin with.
func methodByte(c byte) bool {
	return 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}
